"""A network over two and over four ranks answers as one that is whole, whatever its heads."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoints import Shape, write_checkpoint
from tests.model.tensor_parallel.program import answers

ROOT = Path(__file__).parents[3]


def arrangement(heads, key_value_heads, tied):
    """Heads of 16, as many as a published model has, over two layers."""
    width = heads * 16
    return Shape(
        {
            "hidden_size": width,
            "intermediate_size": 128,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "num_hidden_layers": 2,
            "tie_word_embeddings": tied,
            # Its 521 rows fall into unequal parts.
            "vocab_size": 521,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        {"hidden_size": width, "embed_dim": 64, "num_heads": 4, "depth": 2},
    )


ARRANGEMENTS = {
    "2B": arrangement(12, 2, tied=False),  # over four ranks two share each key-value head
    "7B": arrangement(28, 4, tied=False),
    "72B": replace(arrangement(64, 8, tied=False), shards=3),
    "one-kv": arrangement(4, 1, tied=True),
}


def test_every_arrangement_of_heads_gives_the_tokens_of_the_whole_network(tmp_path):
    folders = [write_checkpoint(tmp_path / name, shape) for name, shape in ARRANGEMENTS.items()]
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    command = [sys.executable, "-m", "tests.model.tensor_parallel.program", str(meeting)]
    ranks = subprocess.Popen(
        [*command, *map(str, folders)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = ranks.communicate(timeout=280)
    except BaseException:
        os.killpg(ranks.pid, signal.SIGKILL)
        ranks.communicate()
        raise
    assert ranks.returncode == 0
    found = json.loads(printed.splitlines()[-1])
    whole = {folder.name: answers(folder) for folder in folders}
    assert len(found) == len(folders) * 2
    for key, each in found.items():
        want = whole[key.partition(" ")[0]]
        assert each.keys() == want.keys()
        for name, numbers in each.items():
            if isinstance(numbers[0], int):
                assert numbers == want[name], key
            else:
                assert numbers == pytest.approx(want[name], abs=1e-4), (key, name)
    said = {token for each in whole.values() for ids in each.values() for token in ids}
    said = {token for token in said if isinstance(token, int)}
    assert len(said) > 20, "networks that all say the same prove little"
