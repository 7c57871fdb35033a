"""What a checkpoint says of vectors decides what is computed, and what cannot be is said."""

import json

import pytest

from mediamill.pipeline.storage import storage
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas.errors import JobError
from mediamill.schemas.job_tasks import EmbedConfig
from mediamill.schemas.task import CAPTION, EmbedTask, Question

NETWORK = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def checkpoint(folder, modules=None, pooling=None, prompts=None):
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", prompts),
    ):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return storage.resolve(str(folder))


def task(pool="auto", prompt=None):
    return EmbedTask((Question(None, prompt),), embed=EmbedConfig(pool=pool), dimension=8)


def resolved(task, place):
    return task_kind(task).resolve(place)


def parts(task):
    return task_kind(task).fingerprint()


def modes(**true):
    names = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    return {f"pooling_mode_{name}": bool(true.get(name)) for name in names}


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (modes(lasttoken=1), "last"),
        (modes(mean_tokens=1), "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, "last"),
        ({"pooling_mode": ["mean"], "include_prompt": True}, "mean"),
    ],
)
@pytest.mark.parametrize("modules", [[NETWORK, POOLING], [NETWORK, POOLING, NORMALIZE]])
def test_a_checkpoint_made_for_vectors_decides(tmp_path, modules, pooling, pool):
    prompts = {"prompts": {"query": "Find: ", "doc": ""}, "default_prompt_name": "query"}
    place = checkpoint(tmp_path, modules, pooling, prompts)
    found = resolved(task(), place)
    assert (found.embed.pool, found.texts_alike) == (pool, True)
    assert found.questions[0].prompt == "Find: "
    assert resolved(task(prompt="Mine"), place).questions[0].prompt == "Mine"
    # Asked for by name it is the same; another pool has vectors of its own, and its own space.
    assert parts(resolved(task(pool), place)) == parts(found)
    other = resolved(task("vision_tower"), place)
    assert (other.texts_alike, other.questions[0].prompt) == (False, None)
    assert parts(other) != parts(found)


def test_any_other_checkpoint_gives_what_its_vision_tower_says(tmp_path):
    place = checkpoint(tmp_path)
    found = resolved(task(), place)
    assert (found.embed.pool, found.texts_alike) == ("vision_tower", False)
    assert not resolved(task("last"), place).texts_alike
    assert resolved(CAPTION, place) is CAPTION
    assert parts(CAPTION) == {}


@pytest.mark.parametrize(
    ("modules", "pooling", "sentence"),
    [
        ([NETWORK, POOLING, DENSE], modes(mean_tokens=1), "the steps Transformer, Pooling, D"),
        ([NETWORK], None, "found the steps Transformer, expected a network, Pooling"),
        ([NETWORK, POOLING], modes(cls_token=1), "found the pooling cls_token, expected lasttoken"),
        ([NETWORK, POOLING], modes(mean_tokens=1, lasttoken=1), "the pooling mean and lasttoken"),
        ([NETWORK, POOLING], modes(), "the pooling of nothing"),
        ([NETWORK, POOLING], None, "names 1_Pooling/config.json, and there is no such file"),
        ([NETWORK, POOLING], {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
        ([NETWORK, {**POOLING, "path": "../secret"}], modes(), "the path '../secret'"),
        ({"no": "list"}, None, "found a JSON dict, expected a list"),
        ("[", None, "found no JSON"),
        ([NETWORK, 3], None, "found the steps Transformer, expected"),
    ],
)
def test_what_cannot_be_computed_is_said_unless_a_pool_is_named(
    tmp_path, modules, pooling, sentence
):
    place = checkpoint(tmp_path, modules, pooling)
    with pytest.raises(JobError, match="json: ") as error:
        resolved(task(), place)
    assert sentence in str(error.value)
    found = resolved(task("mean"), place)
    assert (found.embed.pool, found.texts_alike) == ("mean", False)
