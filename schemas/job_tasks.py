"""Defines the keys of a job file that belong to one kind of task; see schemas/job_models.py."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mediamill.schemas.job_types import (
    Count,
    Expected,
    OptionalPositive,
    OptionalText,
    Positive,
    Strict,
    Text,
    to_tuple,
)

# Names of prompts are names of columns, which readers in SQL have to be able to write.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAX_NAME_LENGTH = 60

JsonSchema = Annotated[
    Mapping[str, Any] | None, Expected("a JSON schema of an object, as a mapping, or null")
]


class Prompt(Strict):
    """One of several prompts."""

    prompt: Text
    json_schema: JsonSchema = None


def _as_prompt(value: object) -> object:
    return {"prompt": value} if isinstance(value, str) else value


def _valid_names(prompts: Mapping[str, Prompt]) -> Mapping[str, Prompt]:
    if not prompts:
        raise ValueError("found no prompt, expected at least one name with its text")
    for name in prompts:
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
            raise ValueError(
                f"found the name '{name}', expected a letter, then letters, digits and _, "
                f"{_MAX_NAME_LENGTH} characters at most: it names columns of the result"
            )
    return prompts


Prompts = Annotated[
    Annotated[
        Mapping[str, Annotated[Prompt, BeforeValidator(_as_prompt)]], AfterValidator(_valid_names)
    ]
    | None,
    Expected("a mapping from names to texts, or to {prompt: text, json_schema: ...}; or null"),
]


class JsonConfig(Strict):
    """How answers with a JSON schema are generated."""

    constrained: Annotated[bool, Expected("true or false")] = Field(
        default=True, description="whether only tokens are chosen that the schema allows"
    )
    retries: Annotated[int, Field(ge=0, le=8), Expected("a whole number from 0 to 8")] = Field(
        default=1, description="answers more, each with another seed, where one does not fit"
    )
    retry_temperature: Positive = Field(
        default=0.7, description="of those, where generation.temperature is 0"
    )


class ScoreConfig(Strict):
    """Job score: the texts to score. Either `texts` or `column` is set."""

    texts: Annotated[
        tuple[Text, ...] | None,
        BeforeValidator(to_tuple),
        Expected("a list of texts that are not blank, or null"),
    ] = Field(default=None, description="scored for every row")
    column: OptionalText = Field(
        default=None, description="the manifest's column of each row's own text, or list of texts"
    )
    end_token: Annotated[bool, Expected("true or false")] = Field(
        default=True, description="whether the answer has to end after the text"
    )
    rank_by: Annotated[Literal["total", "mean"], Expected("total or mean")] = Field(
        default="total", description="the log-likelihood of a whole text, or for each token"
    )


class EmbedConfig(Strict):
    """Job embed: which vector stands for a row."""

    pool: Annotated[
        Literal["auto", "last", "mean", "visual_tokens", "vision_tower"],
        Expected("auto, last, mean, visual_tokens or vision_tower"),
    ] = Field(
        default="auto",
        description="last = the final hidden state of the last token; mean = of all tokens; "
        "visual_tokens = of the media's; vision_tower = what the vision tower says of the media; "
        "auto = as the checkpoint says, else vision_tower",
    )
    normalize: Annotated[bool, Expected("true or false")] = Field(
        default=True, description="whether vectors are scaled to length 1"
    )


class AnnotateConfig(Strict):
    """Job annotate: the windows of a video, and whether videos get rows too."""

    windows: Annotated[Literal["fixed", "scenes", "given"], Expected("fixed, scenes or given")] = (
        Field(
            default="fixed",
            description="fixed = of window_s; scenes = from cut to cut; given = by the manifest's "
            "columns start_s and end_s",
        )
    )
    window_s: Positive = Field(default=10.0, description="seconds of a fixed window")
    overlap_s: Annotated[float, Field(ge=0), Expected("a number of at least 0")] = Field(
        default=0.0, description="seconds that a fixed window shares with the next"
    )
    min_s: Annotated[float, Field(ge=0), Expected("a number of at least 0")] = Field(
        default=1.0, description="a last window, or a scene, that is shorter joins the one before"
    )
    scene_threshold: Annotated[
        float | None, Field(gt=0, le=1), Expected("a number above 0 and at most 1, or null")
    ] = Field(
        default=None,
        description="how much of the picture changes at a cut, less finds more; null = as measured "
        "to be best",
    )
    max_scene_s: OptionalPositive = Field(
        default=None, description="longer scenes are divided evenly"
    )
    max_windows: Count = Field(default=100_000, description="of one video; beyond is an error row")
    videos: Annotated[bool, Expected("true or false")] = Field(
        default=False, description="also write one row for each video, with all its windows"
    )
    summary_prompt: OptionalText = Field(
        default=None,
        description="with videos: what to ask of the windows' texts together; null = nothing",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.overlap_s >= self.window_s:
            raise ValueError(
                f"found overlap_s {self.overlap_s:g} and window_s {self.window_s:g}, expected "
                "overlap_s below window_s"
            )
        if self.summary_prompt is not None and not self.videos:
            raise ValueError("found summary_prompt without videos, expected videos: true with it")
        return self
