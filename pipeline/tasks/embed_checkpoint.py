"""Turns what a job says of vectors, and what its checkpoint says, into what is computed.

A checkpoint that was made for embeddings says so in the files of sentence-transformers: the steps
in modules.json, how hidden states are pooled in the folder that it names, texts to begin prompts
with in config_sentence_transformers.json. Vectors are not computed here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.task import Task

_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_POOLING, _NORMALIZE = "Pooling", "Normalize"
_POOLS: Mapping[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean": "mean"}
_MODE = "pooling_mode"


@dataclass(frozen=True)
class _Declared:
    """The checkpoint's word. prompt: to ask with where nobody says another."""

    pool: Literal["last", "mean"]
    prompt: str | None


def resolved(task: Task, checkpoint: Place) -> Task:
    """A task whose pool is never "auto", and which knows whether rows without media fit in.

    Vectors of texts lie where those of media do only if the checkpoint was made for vectors that
    are pooled so. Raises JobError for `embed.pool: auto` and a checkpoint that wants what is not
    computed here.
    """
    if task.kind != "embed":
        return task
    pool = task.embed.pool
    try:
        declared = _declared(checkpoint)
    except JobError:
        if pool == "auto":
            raise
        declared = None
    if pool == "auto":
        pool = "vision_tower" if declared is None else declared.pool
    alike = declared is not None and declared.pool == pool
    (question,) = task.questions
    if alike and declared is not None and question.prompt is None:
        question = replace(question, prompt=declared.prompt)
    embed = task.embed.model_copy(update={"pool": pool})
    return replace(task, embed=embed, questions=(question,), texts_alike=alike)


def parts(task: Task) -> dict[str, Any]:
    """What decides the vectors of a task that is resolved, besides the job and the checkpoint."""
    if task.kind != "embed":
        return {}
    return {"embed": task.embed.model_dump(mode="json"), "prompt": task.questions[0].prompt}


def _declared(checkpoint: Place) -> _Declared | None:
    modules = _json(checkpoint, _MODULES, list)
    if modules is None:
        return None
    where = f"{storage.redact(checkpoint.url)}/{_MODULES}"
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules if isinstance(one, dict)]
    # The first one is the network itself, under whatever name.
    further = [kind for kind in kinds[1:] if kind != _NORMALIZE]
    if len(kinds) != len(modules) or further != [_POOLING]:
        raise JobError(
            f"{where}: found the steps {', '.join(kinds)}, expected a network, {_POOLING} and at "
            f"most {_NORMALIZE}: name what to compute in embed.pool"
        )
    folder = str(modules[kinds.index(_POOLING)].get("path")).strip("/")
    if not folder or ".." in folder.split("/"):
        raise JobError(f"{where}: found the path '{folder}', expected a folder of the checkpoint")
    name = f"{folder}/config.json"
    config = _json(checkpoint, name, dict)
    if config is None:
        raise JobError(f"{where}: it names {name}, and there is no such file")
    return _Declared(_pool(config, f"{storage.redact(checkpoint.url)}/{name}"), _prompt(checkpoint))


def _pool(config: Mapping[str, Any], where: str) -> Literal["last", "mean"]:
    named = config.get(_MODE)
    modes = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    modes += [
        key.removeprefix(f"{_MODE}_").removesuffix("_tokens")
        for key, value in config.items()
        if key.startswith(f"{_MODE}_") and value is True
    ]
    if len(modes) != 1 or modes[0] not in _POOLS:
        raise JobError(
            f"{where}: found the pooling {' and '.join(map(str, modes)) or 'of nothing'}, expected "
            f"{' or '.join(_POOLS)}: name what to compute in embed.pool"
        )
    if _POOLS[modes[0]] == "mean" and config.get("include_prompt") is False:
        raise JobError(
            f"{where}: found include_prompt false, expected true: a mean without the prompt's "
            "tokens is not computed here; name what to compute in embed.pool"
        )
    return _POOLS[modes[0]]


def _prompt(checkpoint: Place) -> str | None:
    config = _json(checkpoint, _PROMPTS, dict) or {}
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    found = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return found if isinstance(found, str) else None


def _json(checkpoint: Place, name: str, kind: type) -> Any:
    """The content of a file of the checkpoint, None where there is no such file."""
    place = checkpoint / name
    where = f"{storage.redact(checkpoint.url)}/{name}"
    try:
        found = json.loads(storage.read(place))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{where}: the checkpoint cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: found no JSON ({error})") from error
    if not isinstance(found, kind):
        raise JobError(f"{where}: found a JSON {type(found).__name__}, expected a {kind.__name__}")
    return found
