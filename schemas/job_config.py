"""Defines the keys of a job file: names, types, ranges, defaults and meanings.

Whether paths exist, and whether the checkpoint supports the job, is checked in pipeline/plan.py.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mediamill.schemas.job_alarms import Alarms
from mediamill.schemas.job_resources import Resources
from mediamill.schemas.job_retries import Retries
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
    Flag,
    Names,
    OptionalCount,
    OptionalPositive,
    OptionalPositiveShare,
    OptionalShare,
    OptionalText,
    OptionalTexts,
    OptionalWhole,
    Positive,
    Strict,
    Text,
    check_order,
    key,
    to_tuple,
)


class GenerationConfig(Strict):
    """How text is chosen, token by token. null = the checkpoint's value."""

    max_new_tokens: Count = key(128, "maximum output tokens of an answer")
    min_new_tokens: OptionalWhole = key(
        None,
        "output tokens before the end token is allowed; null = the checkpoint's value",
        added_later=True,
    )
    temperature: Annotated[
        float | None, Field(ge=0), Expected("a number of at least 0, or null")
    ] = key(0.0, "0 = the likeliest token, above 0 = sampling; null = the checkpoint's value")
    top_k: OptionalWhole = key(
        None, "sample among the k likeliest tokens; 0 = all; null = the checkpoint's value"
    )
    top_p: OptionalPositiveShare = key(
        None,
        "sample among the likeliest tokens with this total probability; 1 = all; null = the "
        "checkpoint's value",
    )
    min_p: OptionalShare = key(
        None,
        "minimum probability of a sampled token, as a share of the likeliest one's; null = the "
        "checkpoint's value",
        added_later=True,
    )
    repetition_penalty: OptionalPositive = key(
        None, "above 1 makes repeated tokens less likely; null = the checkpoint's value"
    )
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None,
        BeforeValidator(to_tuple),
        Expected("a list of texts that are not empty, or null"),
    ] = key(
        None,
        "texts that end an answer and are cut from it; null = the checkpoint's value",
        added_later=True,
    )

    stop_loops: Flag = key(
        False,
        "whether an answer that repeats itself again and again ends there, as finish_reason loop",
        added_later=True,
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_new_tokens", "max_new_tokens")
        return self


class ImageConfig(Strict):
    """The size of pictures as the model sees them."""

    min_pixels: OptionalCount = key(
        None, "smaller pictures are enlarged to this area; null = the checkpoint's value"
    )
    max_pixels: OptionalCount = key(
        None, "larger pictures are reduced to this area; null = the checkpoint's value"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_pixels", "max_pixels")
        return self


class VideoConfig(Strict):
    """Which frames of a video the model sees, and how large.

    Either `fps` or `num_frames` is set, never both: after validation the other one is None.
    """

    fps: OptionalPositive = key(2.0, "frames to sample from each second of a video")
    num_frames: OptionalCount = key(None, "frames to sample from a video, instead of fps")
    min_frames: Count = key(4, "with fps: minimum frames to sample from a video")
    max_frames: Count = key(768, "with fps: maximum frames to sample from a video")
    min_pixels: OptionalCount = key(None, "as image.min_pixels, for each frame")
    max_pixels: OptionalCount = key(None, "as image.max_pixels, for each frame")
    total_pixels: OptionalCount = key(
        None,
        "maximum height x width, added up over a video's sampled frames; null = no maximum",
        added_later=True,
    )
    max_tokens: OptionalCount = key(
        None,
        "maximum visual tokens of a video: frames are made smaller first, then fewer; null = no "
        "maximum",
        added_later=True,
    )
    mrope: Annotated[Literal["original", "hf5"], Expected("original or hf5")] = key(
        "original",
        "position ids of videos: original = as in training, hf5 = as in transformers 5",
        added_later=True,
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

    schemes: OptionalTexts = key(None, "URL schemes that rows may use; null = all that are known")
    hosts: OptionalTexts = key(
        None, "hosts that http(s) URLs may name, such as *.example.com; null = every public host"
    )
    roots: OptionalTexts = key(
        None,
        "folders that local files may lie in; null = a local manifest's folder and the current one",
    )
    private_addresses: Flag = key(
        False, "whether http(s) hosts may have private, loopback or link-local addresses"
    )
    tries: Count = key(6, "attempts of one request, if the error may be temporary")
    at_once: Count = key(16, "media that one process fetches at the same time")
    ahead_bytes: Bytes = key(
        512 * 1024**2, "fetched media that one process holds before they are decoded"
    )
    cache_bytes: Annotated[int, Field(ge=0), Expected("a whole number of bytes, 0 for none")] = key(
        8 * 1024**3, "large media that a machine keeps on disk for other rows of the job"
    )


class CanaryConfig(Strict):
    """A row with a known answer, which each copy of the model has to give before it starts."""

    uri: OptionalText = key(None, "a picture or video with a known answer; null = no canary")
    prompt: OptionalText = key(None, "prompt of the canary; null = the job's prompt")
    text: OptionalText = key(None, "the answer that the canary must get")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.uri is None) != (self.text is None):
            present, missing = ("text", "uri") if self.uri is None else ("uri", "text")
            raise ValueError(f"found {present} without {missing}, expected both or neither")
        return self


class Limits(Strict):
    """Limits on the cost of one row; a row beyond one becomes an error row."""

    max_bytes: Count = key(1024**3, "maximum bytes of one medium")
    max_image_pixels: Count = key(150_000_000, "maximum height x width of a picture, as stored")
    max_video_pixels: Count = key(
        8192 * 4320, "maximum height x width of a video's frames, as stored"
    )
    max_frames_decoded: Count = key(500_000, "maximum frames to decode of a video, sampled or not")
    max_duration_s: Positive = key(4 * 3600.0, "maximum seconds to decode of a video")
    fetch_timeout_s: Positive = key(60.0, "maximum seconds to fetch one medium")
    decode_timeout_s: Positive = key(300.0, "maximum seconds to decode the media of one row")
    decode_bytes: Bytes = key(2 * 1024**3, "maximum memory to decode the media of one row")
    step_timeout_s: Positive = key(
        600.0, "maximum seconds of one step of the model; an engine that hangs is replaced"
    )
    max_error_rate: OptionalShare = key(
        None, "share of error rows above which the job stops; null = never"
    )
    error_rate_rows: Count = key(1000, "rows of a run before max_error_rate applies")


class JobConfig(Strict):
    """One job, complete: what to read, what to ask, where to write."""

    job: Annotated[
        Literal["caption", "annotate", "score", "embed"],
        Expected("caption, annotate, score or embed"),
    ] = Field(description="the kind of job")
    manifest: Text = Field(description="a Parquet file, folder or glob that lists the media")
    media_column: OptionalText = key(
        None,
        "manifest column that holds pictures or videos themselves; null = the only such column, if "
        "there is neither uri nor media",
        added_later=True,
    )
    output: Text = Field(description="a folder for the result")
    model: Text = Field(
        description="the folder of a checkpoint in hub format, or built-in for the tiny one"
    )
    prompt: OptionalText = key(None, "prompt of rows that have none of their own")
    prompts: Prompts = key(
        None,
        "instead of prompt: several named prompts for every row, each with separate columns",
        added_later=True,
    )
    json_schema: JsonSchema = key(
        None, "schema of the answers to prompt; its properties become columns", added_later=True
    )
    system: OptionalText = key(None, "system message; null = the chat template's own")
    partition_by: Names = key((), "manifest columns that name the result's folders")
    rows_per_file: Count = key(4096, "maximum rows of a result file")
    seed: Annotated[int, Field(ge=0, lt=2**63), Expected("a whole number from 0 to 2^63 - 1")] = (
        key(0, "seed of sampling, used together with the row's id")
    )
    dedupe: Flag = key(
        False,
        "whether rows with exactly the same media and prompts are answered only once",
        added_later=True,
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
    alarms: Alarms = Alarms()
    retries: Retries = Retries()
    canary: CanaryConfig = CanaryConfig()
