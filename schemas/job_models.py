"""Defines the keys of a job file: names, types, ranges, defaults and meanings.

Whether paths exist, and whether the checkpoint supports the job, is checked in pipeline/plan.py.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mediamill.schemas.job_resources import Resources
from mediamill.schemas.job_tasks import (
    AnnotateConfig,
    EmbedConfig,
    JsonConfig,
    JsonSchema,
    Prompts,
    ScoreConfig,
)
from mediamill.schemas.job_types import (
    Bytes,
    Count,
    Expected,
    Names,
    OptionalCount,
    OptionalPositive,
    OptionalText,
    OptionalTexts,
    OptionalWhole,
    Positive,
    Strict,
    Text,
    added_later,
    check_order,
    to_tuple,
)


class GenerationConfig(Strict):
    """How text is chosen, token by token."""

    max_new_tokens: Count = Field(
        default=128, description="tokens after which an answer is cut off"
    )
    min_new_tokens: OptionalWhole = Field(
        default=None,
        description="tokens before which no end token is chosen; null = as the model",
        json_schema_extra=added_later(None),
    )
    temperature: Annotated[
        float | None, Field(ge=0), Expected("a number of at least 0, or null")
    ] = Field(
        default=0.0,
        description="0 takes the likeliest token, above 0 draws; null = as the model says",
    )
    top_k: OptionalWhole = Field(
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
            json_schema_extra=added_later(None),
        )
    )
    repetition_penalty: OptionalPositive = Field(
        default=None, description="above 1 makes repeats less likely; null = as the model says"
    )
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None,
        BeforeValidator(to_tuple),
        Expected("a list of texts that are not empty, or null"),
    ] = Field(
        default=None,
        description="an answer ends before any of these texts; null = as the model says",
        json_schema_extra=added_later(None),
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_new_tokens", "max_new_tokens")
        return self


class ImageConfig(Strict):
    """The size of pictures as the model sees them. null = as the checkpoint says."""

    min_pixels: OptionalCount = Field(
        default=None, description="smaller pictures are enlarged to this area"
    )
    max_pixels: OptionalCount = Field(
        default=None, description="larger pictures are reduced to this area"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_pixels", "max_pixels")
        return self


class VideoConfig(Strict):
    """Which frames of a video the model sees, and how large.

    Either `fps` or `num_frames` is set, never both: after validation the other one is None.
    """

    fps: OptionalPositive = Field(default=2.0, description="frames a second to look at")
    num_frames: OptionalCount = Field(
        default=None, description="look at so many frames, instead of fps"
    )
    min_frames: Count = Field(default=4, description="with fps: at least so many frames")
    max_frames: Count = Field(default=768, description="with fps: at most so many frames")
    min_pixels: OptionalCount = Field(
        default=None, description="as image.min_pixels, for each frame"
    )
    max_pixels: OptionalCount = Field(
        default=None, description="as image.max_pixels, for each frame"
    )
    total_pixels: OptionalCount = Field(
        default=None,
        description="height x width of all frames that are looked at, together",
        json_schema_extra=added_later(None),
    )
    max_tokens: OptionalCount = Field(
        default=None,
        description="visual tokens of a video; frames shrink, then become fewer",
        json_schema_extra=added_later(None),
    )
    mrope: Annotated[Literal["original", "hf5"], Expected("original or hf5")] = Field(
        default="original",
        description="how the model counts a video's positions: as it was trained, or as "
        "transformers 5 does",
        json_schema_extra=added_later("original"),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_order(self, "min_frames", "max_frames")
        check_order(self, "min_pixels", "max_pixels")
        if self.fps is None and self.num_frames is None:
            raise ValueError("found null for both fps and num_frames, expected one of them")
        if self.fps is not None and self.num_frames is not None:
            if "fps" in self.model_fields_set:
                raise ValueError(
                    f"found both fps ({self.fps}) and num_frames ({self.num_frames}), expected "
                    "one: fps samples by time, num_frames a fixed number; set the other to null"
                )
            # The model is frozen.
            object.__setattr__(self, "fps", None)
        return self


class FetchConfig(Strict):
    """Where media may come from, and how they are fetched."""

    schemes: OptionalTexts = Field(
        default=None, description="kinds of URL that rows may name; null = all that are known"
    )
    hosts: OptionalTexts = Field(
        default=None,
        description="hosts that http(s) URLs may name, with *; null = every public one",
    )
    roots: OptionalTexts = Field(
        default=None,
        description="folders of files; null = a local manifest's and the current one",
    )
    private_addresses: Annotated[bool, Expected("true or false")] = Field(
        default=False,
        description="whether http(s) hosts may have private, loopback or link-local addresses",
    )
    tries: Count = Field(default=6, description="of one request, when the storage may recover")
    at_once: Count = Field(default=16, description="media that one process fetches at once")
    ahead_bytes: Bytes = Field(
        default=512 * 1024**2, description="media that one process holds before they are decoded"
    )
    cache_bytes: Annotated[int, Field(ge=0), Expected("a whole number of bytes, 0 for none")] = (
        Field(
            default=8 * 1024**3,
            description="large media that a machine keeps on disk for further rows of a job",
        )
    )


class CanaryConfig(Strict):
    """A row with a known answer, which each copy of the model has to give before it starts."""

    uri: OptionalText = Field(default=None, description="a picture or video; null = no canary")
    prompt: OptionalText = Field(default=None, description="what to ask; null = the job's prompt")
    text: OptionalText = Field(default=None, description="the answer that is right")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.uri is None) != (self.text is None):
            present, missing = ("text", "uri") if self.uri is None else ("uri", "text")
            raise ValueError(f"found {present} without {missing}, expected both or neither")
        return self


class Limits(Strict):
    """Limits on the cost of one row; a row beyond one becomes an error row."""

    max_bytes: Count = Field(default=1024**3, description="bytes of one medium")
    max_image_pixels: Count = Field(
        default=150_000_000, description="height x width of a picture, as stored"
    )
    max_video_pixels: Count = Field(
        default=8192 * 4320, description="height x width of one frame of a video, as stored"
    )
    max_frames_decoded: Count = Field(
        default=500_000, description="frames of a video that have to be decoded, looked at or not"
    )
    max_duration_s: Positive = Field(
        default=4 * 3600.0, description="seconds of a video that have to be decoded"
    )
    fetch_timeout_s: Positive = Field(default=60.0, description="seconds to wait for one medium")
    decode_timeout_s: Positive = Field(
        default=300.0, description="seconds to decode the media of one row"
    )
    decode_bytes: Bytes = Field(
        default=2 * 1024**3, description="memory that decoding the media of one row may take"
    )
    step_timeout_s: Positive = Field(
        default=600.0, description="seconds of one step of the model; a copy that hangs is replaced"
    )
    max_error_rate: Annotated[
        float | None, Field(ge=0, le=1), Expected("a number from 0 to 1, or null")
    ] = Field(
        default=None, description="share of error rows above which the job stops; null = never"
    )
    error_rate_rows: Count = Field(
        default=1000, description="rows of a run before max_error_rate is looked at"
    )


class JobConfig(Strict):
    """One job, complete: what to read, what to ask, where to write."""

    job: Annotated[
        Literal["caption", "annotate", "score", "embed"],
        Expected("caption, annotate, score or embed"),
    ] = Field(description="the kind of job")
    manifest: Text = Field(description="a Parquet file, folder or glob with a row for each answer")
    output: Text = Field(description="a folder for the result")
    model: Text = Field(
        description="the folder of a checkpoint in hub format; built-in = the tiny one"
    )
    prompt: OptionalText = Field(
        default=None, description="what to ask of rows that bring no prompt"
    )
    prompts: Prompts = Field(
        default=None,
        description="instead of prompt: several questions to every row, by name; each has columns "
        "of its own",
        json_schema_extra=added_later(None),
    )
    json_schema: JsonSchema = Field(
        default=None,
        description="of the answers to prompt: their properties become typed columns",
        json_schema_extra=added_later(None),
    )
    system: OptionalText = Field(
        default=None, description="system message; null = the chat template's own"
    )
    partition_by: Names = Field(
        default=(), description="manifest columns that name the result's folders"
    )
    rows_per_file: Count = Field(
        default=4096, description="rows of one file of the result, at most"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63), Expected("a whole number from 0 to 2^63 - 1")] = (
        Field(default=0, description="of sampling, together with the row's id")
    )
    dedupe: Annotated[bool, Expected("true or false")] = Field(
        default=False,
        description="rows whose media and prompts are exactly those of another are answered once",
        json_schema_extra=added_later(False),
    )
    generation: GenerationConfig = GenerationConfig()
    json_answers: JsonConfig = JsonConfig()
    score: ScoreConfig = ScoreConfig()
    embed: EmbedConfig = EmbedConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    image: ImageConfig = ImageConfig()
    video: VideoConfig = VideoConfig()
    fetch: FetchConfig = FetchConfig()
    resources: Resources = Resources()
    limits: Limits = Limits()
    canary: CanaryConfig = CanaryConfig()
