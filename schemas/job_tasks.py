"""Defines the keys of a job file that belong to one kind of task; see schemas/job_config.py."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mediamill.schemas.job_types import (
    Count,
    Expected,
    Flag,
    NonNegative,
    OptionalPositive,
    OptionalPositiveShare,
    OptionalText,
    Positive,
    Strict,
    Text,
    key,
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

    constrained: Flag = key(True, "whether the model can only generate what the schema allows")
    retries: Annotated[int, Field(ge=0, le=8), Expected("a whole number from 0 to 8")] = key(
        1, "attempts with other seeds when an answer does not fit the schema"
    )
    retry_temperature: Positive = key(
        0.7, "temperature of these attempts, if generation.temperature is 0"
    )


class ScoreConfig(Strict):
    """Job score: the texts to score. Either `texts` or `column` is set."""

    texts: Annotated[
        tuple[Text, ...] | None,
        BeforeValidator(to_tuple),
        Expected("a list of texts that are not blank, or null"),
    ] = key(None, "texts to score for every row")
    column: OptionalText = key(None, "manifest column with each row's text, or list of texts")
    end_token: Flag = key(True, "whether the answer must end after the text")
    rank_by: Annotated[Literal["total", "mean"], Expected("total or mean")] = key(
        "total", "rank texts by their log-likelihood, or by its mean over the tokens"
    )


class EmbedConfig(Strict):
    """Job embed: which vector stands for a row."""

    pool: Annotated[
        Literal["auto", "last", "mean", "visual_tokens", "vision_tower"],
        Expected("auto, last, mean, visual_tokens or vision_tower"),
    ] = key(
        "auto",
        "last = the final hidden state of the last token; mean = of all tokens; visual_tokens = of "
        "the media's tokens; vision_tower = the vision tower's output for the media; auto = as the "
        "checkpoint says, else vision_tower",
    )
    normalize: Flag = key(True, "whether vectors are scaled to length 1")


class AnnotateConfig(Strict):
    """Job annotate: the windows of a video, and whether videos get rows too."""

    windows: Annotated[Literal["fixed", "scenes", "given"], Expected("fixed, scenes or given")] = (
        key(
            "fixed",
            "fixed = every window_s; scenes = from cut to cut; given = from the manifest's columns "
            "start_s and end_s",
        )
    )
    window_s: Positive = key(10.0, "seconds of a fixed window")
    overlap_s: NonNegative = key(0.0, "seconds that a fixed window shares with the next")
    min_s: NonNegative = key(1.0, "a shorter last window, or scene, joins the one before")
    scene_threshold: OptionalPositiveShare = key(
        None,
        "how much of the picture changes at a cut; a lower value finds more cuts; null = the value "
        "that was measured to be best",
    )
    max_scene_s: OptionalPositive = key(None, "longer scenes are divided evenly")
    max_windows: Count = key(100_000, "maximum windows of a video; beyond it is an error row")
    videos: Flag = key(False, "whether to also write one row for each video, with all its windows")
    summary_prompt: OptionalText = key(
        None,
        "with videos: prompt about the texts of all windows of a video; null = no summaries",
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
