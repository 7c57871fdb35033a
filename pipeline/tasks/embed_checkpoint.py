"""Reads what a checkpoint declares about embeddings, in the files of sentence-transformers.

modules.json lists the steps and names the folder that says how hidden states are pooled;
config_sentence_transformers.json holds prompts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_POOLING, _NORMALIZE = "Pooling", "Normalize"
_POOLS: Mapping[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean": "mean"}
_MODE = "pooling_mode"


@dataclass(frozen=True)
class DeclaredEmbedding:
    """How a checkpoint pools hidden states. prompt: the default one."""

    pool: Literal["last", "mean"]
    prompt: str | None


def declared_embedding(checkpoint: Place) -> DeclaredEmbedding | None:
    """Returns what the checkpoint declares; None if it was not made for embeddings.

    Raises JobError for files that cannot be read, and for steps that are not implemented.
    """
    modules = _json(checkpoint, _MODULES, list)
    if modules is None:
        return None
    where = f"{storage.redact(checkpoint.url)}/{_MODULES}"
    steps = [
        str(module.get("type")).rpartition(".")[2] for module in modules if isinstance(module, dict)
    ]
    # The first step is the network itself, under any name.
    if len(steps) != len(modules) or [s for s in steps[1:] if s != _NORMALIZE] != [_POOLING]:
        raise JobError(
            f"{where}: found the steps {', '.join(steps)}, expected a network, {_POOLING} and at "
            f"most {_NORMALIZE}: name what to compute in embed.pool"
        )
    folder = str(modules[steps.index(_POOLING)].get("path")).strip("/")
    if not folder or ".." in folder.split("/"):
        raise JobError(f"{where}: found the path '{folder}', expected a folder of the checkpoint")
    name = f"{folder}/config.json"
    config = _json(checkpoint, name, dict)
    if config is None:
        raise JobError(f"{where}: it names {name}, and there is no such file")
    pool = _pool(config, f"{storage.redact(checkpoint.url)}/{name}")
    return DeclaredEmbedding(pool, _prompt(checkpoint))


def _pool(config: Mapping[str, Any], where: str) -> Literal["last", "mean"]:
    mode = config.get(_MODE)
    modes = [mode] if isinstance(mode, str) else mode if isinstance(mode, list) else []
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
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return prompt if isinstance(prompt, str) else None


def _json(checkpoint: Place, name: str, kind: type) -> Any:
    """Returns the content of a file of the checkpoint; None if there is no such file."""
    place = checkpoint / name
    where = f"{storage.redact(checkpoint.url)}/{name}"
    try:
        content = json.loads(storage.read(place))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{where}: the checkpoint cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise JobError(f"{where}: found no JSON ({error})") from error
    if not isinstance(content, kind):
        raise JobError(
            f"{where}: found a JSON {type(content).__name__}, expected a {kind.__name__}"
        )
    return content
