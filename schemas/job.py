"""Reads a job file and `key=value` overrides into a JobConfig, and writes a JobConfig as YAML.

Relative paths stay as they are written: they are relative to the current directory of the command,
not to the job file. The keys are defined in schemas/job_config.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mediamill.schemas.errors import JobError
from mediamill.schemas.job_config import (
    CanaryConfig,
    FetchConfig,
    GenerationConfig,
    ImageConfig,
    JobConfig,
    Limits,
    VideoConfig,
)
from mediamill.schemas.job_errors import unknown_keys, wrong_values
from mediamill.schemas.job_help import KEYS, SECTIONS, describe_keys, takes_text, to_json
from mediamill.schemas.job_resources import Resources
from mediamill.schemas.job_yaml import (
    COMMAND_LINE,
    LocatedValue,
    dump_yaml,
    flatten,
    parse_value,
    read_file,
    split_pairs,
)

__all__ = [
    "KEYS",
    "CanaryConfig",
    "FetchConfig",
    "GenerationConfig",
    "ImageConfig",
    "JobConfig",
    "Limits",
    "Resources",
    "VideoConfig",
    "describe_keys",
    "job_dict",
    "load_job",
    "parse_overrides",
    "render_job",
]


def load_job(
    path: str | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
    job: str | None = None,
) -> JobConfig:
    """Returns the job of a YAML file (None = no file), changed by overrides.

    overrides: `key=value` texts with dotted keys and YAML values, or a mapping from dotted keys (or
        sections) to values.
    job: the kind of job of the command; a file may omit its key `job` then, but not contradict it.
    Raises JobError with one line for each mistake: the file and line (or "command line"), the key,
    the value and the expected one.
    """
    values = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    given = {} if path is None else read_file(path, SECTIONS)
    given |= flatten(values, SECTIONS)
    if job is not None:
        named = given.setdefault("job", LocatedValue(job, COMMAND_LINE))
        if named.value != job:
            raise JobError(
                f"{named.where}: job: found {to_json(named.value)}, expected {job} as the command"
            )
    return _build(given, path or COMMAND_LINE)


def parse_overrides(pairs: Sequence[str]) -> dict[str, object]:
    """Returns `key=value` texts as a mapping from dotted keys to values.

    A value is YAML, except for keys that take text: their value is used literally (a prompt may
    hold `: ` or `#`), unless it is quoted as in YAML or null. Raises JobError.
    """
    values: dict[str, object] = {}
    for key, text in split_pairs(pairs).items():
        values[key] = (
            _text_value(text) if takes_text(key) else parse_value(text, f"{COMMAND_LINE}: {key}")
        )
    return values


def job_dict(job: JobConfig) -> dict[str, Any]:
    """Returns every key of the job, in sections, as values that JSON can hold."""
    return job.model_dump(mode="json")


def render_job(job: JobConfig) -> str:
    """Returns the job as the text of a job file; `load_job` of it gives an equal JobConfig."""
    return dump_yaml(job_dict(job))


def _text_value(text: str) -> object:
    if text in ("", "~", "null"):
        return None
    if text[0] in "\"'":
        try:
            value = parse_value(text, COMMAND_LINE)
        except JobError:
            return text  # text after the closing quote: `"No" is an answer`
        if isinstance(value, str):
            return value
    return text


def _build(given: Mapping[str, LocatedValue], source: str) -> JobConfig:
    mistakes = unknown_keys(given)
    try:
        job = JobConfig.model_validate(_tree(given))
    except ValidationError as error:
        mistakes |= wrong_values(error, given, source)
    if mistakes:
        order = [*given, *mistakes]  # in the order of the file, then the missing keys
        raise JobError(*(mistakes[key] for key in sorted(mistakes, key=order.index)))
    return job


def _tree(given: Mapping[str, LocatedValue]) -> dict[str, Any]:
    """Returns the known keys as nested mappings, as the models take them."""
    tree: dict[str, Any] = {}
    for key, located in given.items():
        section, dot, name = key.partition(".")
        if key in KEYS and dot:
            members = tree.setdefault(section, {})
            if isinstance(members, dict):  # else the section has a value of its own: a mistake
                members[name] = located.value
        elif key in KEYS or key in SECTIONS:
            tree[key] = located.value
    return tree
