"""The keys of a job file: names, types, ranges, defaults and meanings, as strict frozen models.

Whether paths exist and whether a checkpoint can do what is asked is not known here.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Expected:
    """How an error sentence names the values that a field takes."""

    words: str


def _listed(value: object) -> object:
    """A YAML list as the tuple that a frozen model holds; one bare name as a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"found '{twice[0]}' more than once, expected each name once")
    return names


_Text = Annotated[str, Field(pattern=r"\S"), Expected("text that is not blank")]
_OptionalText = Annotated[_Text | None, Expected("text that is not blank, or null")]
_Count = Annotated[int, Field(ge=1), Expected("a whole number of at least 1")]
_OptionalCount = Annotated[_Count | None, Expected("a whole number of at least 1, or null")]
_OptionalWhole = Annotated[
    Annotated[int, Field(ge=0)] | None, Expected("a whole number of at least 0, or null")
]
_AutoOrCount = Annotated[
    Literal["auto"] | _Count, Expected("auto, or a whole number of at least 1")
]
_Positive = Annotated[float, Field(gt=0), Expected("a number greater than 0")]
_OptionalPositive = Annotated[_Positive | None, Expected("a number greater than 0, or null")]
_Bytes = Annotated[int, Field(ge=1024**2), Expected("a whole number of bytes, at least 1 MiB")]
_Names = Annotated[
    tuple[_Text, ...],
    BeforeValidator(_listed),
    AfterValidator(_once),
    Expected("a list of column names"),
]
_OptionalTexts = Annotated[
    Annotated[tuple[_Text, ...], AfterValidator(_once)] | None,
    BeforeValidator(_listed),
    Expected("a list of texts that are not blank, or null"),
]


def _at_most(config: BaseModel, low: str, high: str) -> None:
    smallest, largest = getattr(config, low), getattr(config, high)
    if smallest is not None and largest is not None and smallest > largest:
        raise ValueError(
            f"found {low} {smallest} above {high} {largest}, expected {low} to be at most {high}"
        )


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GenerationConfig(_Strict):
    """How text is chosen, token by token."""

    max_new_tokens: _Count = Field(
        default=128, description="tokens after which an answer is cut off"
    )
    min_new_tokens: _OptionalWhole = Field(
        default=None, description="tokens before which no end token is chosen; null = as the model"
    )
    temperature: Annotated[
        float | None, Field(ge=0), Expected("a number of at least 0, or null")
    ] = Field(
        default=0.0,
        description="0 takes the likeliest token, above 0 draws; null = as the model says",
    )
    top_k: _OptionalWhole = Field(
        default=None,
        description="draw among the k likeliest tokens; 0 = all; null = as the model says",
    )
    top_p: Annotated[
        float | None, Field(gt=0, le=1), Expected("a number above 0 and at most 1, or null")
    ] = Field(
        default=None,
        description="likeliest tokens of this total probability; 1 = all; null = the model's",
    )
    min_p: Annotated[float | None, Field(ge=0, le=1), Expected("a number from 0 to 1, or null")] = (
        Field(
            default=None,
            description="least share of the likeliest token's probability; null = the model's",
        )
    )
    repetition_penalty: _OptionalPositive = Field(
        default=None, description="above 1 makes repeats less likely; null = as the model says"
    )
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None,
        BeforeValidator(_listed),
        Expected("a list of texts that are not empty, or null"),
    ] = Field(
        default=None,
        description="an answer ends before any of these texts; null = as the model says",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _at_most(self, "min_new_tokens", "max_new_tokens")
        return self


class ImageConfig(_Strict):
    """The size of pictures as the model sees them. null = as the checkpoint says."""

    min_pixels: _OptionalCount = Field(
        default=None, description="smaller pictures are enlarged to this area"
    )
    max_pixels: _OptionalCount = Field(
        default=None, description="larger pictures are reduced to this area"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _at_most(self, "min_pixels", "max_pixels")
        return self


class VideoConfig(_Strict):
    """Which frames of a video the model sees, and how large.

    Either `fps` or `num_frames` is set, never both: after validation the other one is None.
    """

    fps: _OptionalPositive = Field(default=2.0, description="frames a second to look at")
    num_frames: _OptionalCount = Field(
        default=None, description="look at so many frames, instead of fps"
    )
    min_frames: _Count = Field(default=4, description="with fps: at least so many frames")
    max_frames: _Count = Field(default=768, description="with fps: at most so many frames")
    min_pixels: _OptionalCount = Field(
        default=None, description="as image.min_pixels, for each frame"
    )
    max_pixels: _OptionalCount = Field(
        default=None, description="as image.max_pixels, for each frame"
    )
    mrope: Annotated[Literal["original", "hf5"], Expected("original or hf5")] = Field(
        default="original",
        description="how the model counts a video's positions: as it was trained, or as "
        "transformers 5 does",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _at_most(self, "min_frames", "max_frames")
        _at_most(self, "min_pixels", "max_pixels")
        if self.fps is None and self.num_frames is None:
            raise ValueError("found null for both fps and num_frames, expected one of them")
        if self.fps is not None and self.num_frames is not None:
            if "fps" in self.model_fields_set:
                raise ValueError(
                    f"found both fps ({self.fps}) and num_frames ({self.num_frames}), expected "
                    "one: fps samples by time, num_frames a fixed number; set the other to null"
                )
            # A frozen model may only be completed while it is being made.
            object.__setattr__(self, "fps", None)
        return self


class Resources(_Strict):
    """What the job runs on."""

    replicas: _AutoOrCount = Field(
        default="auto", description="copies of the model that work side by side"
    )
    tensor_parallel: _Count = Field(default=1, description="GPUs that share one copy of the model")
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Expected("auto, bfloat16, float16 or float32"),
    ] = Field(default="auto", description="number format of weights and activations")
    prepare_workers: _AutoOrCount = Field(
        default="auto", description="processes that fetch and decode media"
    )
    batch_rows: _AutoOrCount = Field(
        default="auto", description="rows that the model works on at once"
    )
    max_engine_failures: Annotated[int, Field(ge=0), Expected("a whole number of at least 0")] = (
        Field(
            default=8,
            description="broken engines that are replaced before the job stops, in one run",
        )
    )
    grace_s: Annotated[float, Field(ge=0), Expected("a number of at least 0")] = Field(
        default=60.0, description="seconds to finish what has begun, when the job is told to stop"
    )


class FetchConfig(_Strict):
    """Where media may come from, and how they are brought here."""

    schemes: _OptionalTexts = Field(
        default=None, description="kinds of URL that rows may name; null = all that are known"
    )
    hosts: _OptionalTexts = Field(
        default=None,
        description="hosts that http(s) URLs may name, with *; null = every public one",
    )
    roots: _OptionalTexts = Field(
        default=None,
        description="folders of files; null = a local manifest's and the current one",
    )
    private_addresses: Annotated[bool, Expected("true or false")] = Field(
        default=False,
        description="whether http(s) hosts may have private, loopback or link-local addresses",
    )
    tries: _Count = Field(default=6, description="of one request, when the storage may recover")
    at_once: _Count = Field(default=16, description="media that one process fetches at once")
    ahead_bytes: _Bytes = Field(
        default=512 * 1024**2, description="media that one process holds before they are decoded"
    )


class CanaryConfig(_Strict):
    """A row whose answer is known: each copy of the model has to give it before it may begin."""

    uri: _OptionalText = Field(default=None, description="a picture or video; null = no canary")
    prompt: _OptionalText = Field(default=None, description="what to ask; null = the job's prompt")
    text: _OptionalText = Field(default=None, description="the answer that is right")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.uri is None) != (self.text is None):
            there, missing = ("text", "uri") if self.uri is None else ("uri", "text")
            raise ValueError(f"found {there} without {missing}, expected both or neither")
        return self


class Limits(_Strict):
    """Ceilings on what one row may cost; a row beyond one becomes an error row."""

    max_bytes: _Count = Field(default=1024**3, description="bytes of one medium")
    max_image_pixels: _Count = Field(
        default=150_000_000, description="height x width of a picture, as stored"
    )
    max_video_pixels: _Count = Field(
        default=8192 * 4320, description="height x width of one frame of a video, as stored"
    )
    max_frames_decoded: _Count = Field(
        default=500_000, description="frames of a video that have to be decoded, looked at or not"
    )
    max_duration_s: _Positive = Field(
        default=4 * 3600.0, description="seconds of a video that have to be decoded"
    )
    fetch_timeout_s: _Positive = Field(default=60.0, description="seconds to wait for one medium")
    decode_timeout_s: _Positive = Field(
        default=300.0, description="seconds to decode the media of one row"
    )
    decode_bytes: _Bytes = Field(
        default=4 * 1024**3, description="memory that decoding the media of one row may take"
    )
    max_error_rate: Annotated[
        float | None, Field(ge=0, le=1), Expected("a number from 0 to 1, or null")
    ] = Field(
        default=None, description="share of error rows above which the job stops; null = never"
    )
    error_rate_rows: _Count = Field(
        default=1000, description="rows of a run before max_error_rate is looked at"
    )


class JobConfig(_Strict):
    """One job, complete: what to read, what to ask, where to write."""

    job: Annotated[Literal["caption"], Expected("caption")] = Field(description="the kind of job")
    manifest: _Text = Field(description="a Parquet file, folder or glob with a row for each answer")
    output: _Text = Field(description="a folder for the result")
    model: _Text = Field(description="the folder of a checkpoint in hub format")
    prompt: _OptionalText = Field(
        default=None, description="what to ask of rows that bring no prompt"
    )
    system: _OptionalText = Field(
        default=None, description="system message; null = the chat template's own"
    )
    partition_by: _Names = Field(
        default=(), description="manifest columns that name the result's folders"
    )
    rows_per_file: _Count = Field(
        default=4096, description="rows of one file of the result, at most"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63), Expected("a whole number from 0 to 2^63 - 1")] = (
        Field(default=0, description="of sampling, together with the row's id")
    )
    generation: GenerationConfig = GenerationConfig()
    image: ImageConfig = ImageConfig()
    video: VideoConfig = VideoConfig()
    fetch: FetchConfig = FetchConfig()
    resources: Resources = Resources()
    limits: Limits = Limits()
    canary: CanaryConfig = CanaryConfig()
