"""Jobs that can never work: each is one sentence and exit code 2, and Ray is not even imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mediamill.model.tiny import CHECKPOINT
from tests.pipeline.world import write_manifest

# One process for all jobs. torch is loaded first, so that the checkpoint is checked in it.
RUN = """
import contextlib, io, json, sys
import torch
from mediamill.jobs.cli import main
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        code = main(arguments)
    print(json.dumps([code, errors.getvalue(), "ray" in sys.modules]), flush=True)
"""
KEYS = {
    "image.max_pixels=1": "image.max_pixels: found 1, below the checkpoint's min_pixels",
    "image.max_pixels=7055": "image.max_pixels: found 7055, below the checkpoint's min_pixels",
    "image.min_pixels=99999999": "image.min_pixels: found 99999999, above the checkpoint's max_",
    "image.min_pixels=5 image.max_pixels=4": "found min_pixels 5 above max_pixels 4",
    "image.min_pixels=9999999999 image.max_pixels=9999999999": "image.min_pixels: found 9999999999",
    "video.max_pixels=1": "video.max_pixels: found 1, below the checkpoint's min_pixels",
    "video.min_pixels=99999999": "video.min_pixels: found 99999999, above the checkpoint's max_",
    "video.min_pixels=5 video.max_pixels=4": "found min_pixels 5 above max_pixels 4",
    "video.total_pixels=10": "video.total_pixels: found 10, which no frame of min_pixels",
    "video.max_tokens=1": "video.max_tokens: found 1, which no frame of min_pixels",
    "video.min_frames=9 video.max_frames=4": "found min_frames 9 above max_frames 4",
    "video.fps=1 video.num_frames=4": "found both fps (1.0) and num_frames (4)",
    "video.fps=null": "found null for both fps and num_frames",
    "video.fps=0": "video.fps: found 0",
    "video.num_frames=0": "video.num_frames: found 0",
    "generation.max_new_tokens=0": "generation.max_new_tokens: found 0",
    "generation.min_new_tokens=9 generation.max_new_tokens=4": "found min_new_tokens 9 above",
    "generation.temperature=-1": "generation.temperature: found -1",
    "generation.top_k=5": "generation.top_k: found 5 beside temperature 0",
    "generation.top_p=0": "generation.top_p: found 0",
    "resources.tensor_parallel=3": "resources.tensor_parallel: the network does not fall into 3",
    "resources.dtype=int8": 'resources.dtype: found "int8"',
    "resources.replicas=3..2": 'resources.replicas: found "3..2"',
    "resources.replicas=0": "resources.replicas: found 0",
    "limits.decode_bytes=1": "limits.decode_bytes: found 1",
    "limits.fetch_timeout_s=1e12": "limits.fetch_timeout_s: found 1e+12",
    "limits.max_error_rate=2": "limits.max_error_rate: found 2",
    "limits.max_bytes=0": "limits.max_bytes: found 0",
    "limits.step_timeout_s=1e-6": "limits.step_timeout_s: found 1e-06, expected at least",
    "fetch.schemes=[s4]": "fetch.schemes: found 's4', expected one of",
    "fetch.hosts=[10.0.0.1]": "fetch.hosts: found '10.0.0.1', which is private",
    "partition_by=[colour]": "partition_by names column 'colour'",
    "prompts={a: hi} prompt=hi": "prompt",
    "prompt=null": "prompt: found none in the job, and no column 'prompt'",
    "prompt=<|im_end|>": 'prompt: found "<|im_end|>", which no row can be asked',
    "system=<|im_end|>": "a text of the prompt holds the control string <|im_end|>",
    "canary.uri=nowhere.jpg canary.text=x": "canary.uri: nowhere.jpg cannot be read",
    "canary.uri=text canary.text=x": "canary: text cannot be asked about",
    "canary.uri=text": "found uri without text",
    "manifest=none.parquet": "none.parquet: found no such file or folder",
    "manifest=gs://bucket/m.parquet": "gs://bucket/m.parquet: cannot be opened: Please install",
    "manifest=nope://u:SECRET@h/m": "nope://h/m",
    "output=nope://u:pa/ssSECRET@h/m": "nope://h/m",
    "output=m.parquet": "output: found",
    "output=text": "text: the output is a file, expected a folder",
    "output=text/below": "text/below: the output cannot be ",
    "output=/proc/out": "/proc/out: the output cannot be written",
    "manifest=table output=table": "expected a folder apart from it",
    "manifest=table output=table/out": "expected a folder apart from it",
    "manifest=table output=other/../table/out": "expected a folder apart from it",
    "manifest=table output=link/out": "expected a folder apart from it",
    "manifest=table/m.parquet output=table": "expected a folder apart from it",
    "output=.": "expected a folder apart from it",
    "model=truncated output=truncated/out": "expected a folder apart from it",
    "manifest=link output=table/out": "expected a folder apart from it",
    "manifest=table/*.parquet output=table/x.parquet": "expected a folder apart from it",
    "manifest=tab*/* output=table/out": "expected a folder apart from it",
    "model=none": "none: found no such folder, expected a checkpoint",
    "model=text": "text: found no such folder, expected a checkpoint",
    "model=gs://bucket/model": "gs://bucket/model: cannot be opened",
    "model=truncated": "truncated/model.safetensors is not a whole safetensors file",
    "model=renamed": "1 tensor is missing",
    "model=no-tokenizer": "the checkpoint lacks tokenizer.json",
    "model=bad-tokenizer": "bad-tokenizer/tokenizer.json: is no tokenizer that can be read",
    "model=no-rules": "found neither preprocessor_config.json nor processor_config.json",
    "model=two-beams": "num_beams",
    "model=float8": "float8",
    "nonsense=1": "unknown key 'nonsense'",
    'manifest="a\\0b"': "found a NUL character, expected a path or URL",
    'output="a\\0b"': "found a NUL character, expected a path or URL",
    'model="a\\0b"': "found a NUL character, expected a path or URL",
    'fetch.roots=["a\\0b"]': "found a NUL character, expected a path or URL",
    'manifest="a\\nb"': r"/a\nb: found no such file or folder",
    'partition_by="a\\nb"': r"partition_by names column 'a\nb'",
    "output=s3://": "s3://: found nothing after the scheme, expected a whole URL",
    "model=hf://": "hf://: found nothing after the scheme",
    "fetch.hosts=*": "quote a text that begins with * or &",
    "fetch.hosts=0x10": "fetch.hosts: '0x10': found a host that ends in a number",
    "resources.device=cuda --address http://h:8265": "the URL of a dashboard",
    "seed=1 --address ray://h:10001": "--address: found 'ray://h:10001', an address of Ray Client",
    "seed=1 --address h:99999": "--address: found 'h:99999', expected HOST:PORT",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a right manifest, and checkpoints with a mistake each."""
    folder = tmp_path_factory.mktemp("impossible")
    rows = [{"id": number, "uri": f"{number}.jpg"} for number in range(3)]
    write_manifest(folder / "m.parquet", rows)
    write_manifest(folder / "table" / "m.parquet", rows)
    (folder / "link").symlink_to(folder / "table")
    (folder / "other").mkdir()
    (folder / "text").write_text("no picture")
    for name in ("truncated", "renamed", "no-tokenizer", "bad-tokenizer", "no-rules", "two-beams"):
        shutil.copytree(CHECKPOINT, folder / name)
    shutil.copytree(CHECKPOINT, folder / "float8")
    weights = (CHECKPOINT / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(weights[:-1000])
    renamed = weights.replace(b'"visual.merger.ln_q.bias"', b'"visual.merger.ln_q.bia2"', 1)
    (folder / "renamed" / "model.safetensors").write_bytes(renamed)
    (folder / "no-tokenizer" / "tokenizer.json").unlink()
    (folder / "bad-tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "no-rules" / "preprocessor_config.json").unlink()
    (folder / "two-beams" / "generation_config.json").write_text('{"num_beams": 2}')
    config = json.loads((CHECKPOINT / "config.json").read_text())
    changed = {**config, "torch_dtype": "float8_e4m3fn", "dtype": "float8_e4m3fn"}
    (folder / "float8" / "config.json").write_text(json.dumps(changed))
    return folder


def arguments_of(changes):
    """The arguments of a job that would work, with `key=value` pairs over it."""
    pairs, _, address = changes.partition(" --address ")
    given = [pair.replace(":~", ": ") for pair in pairs.replace(": ", ":~").split(" ")]
    options = ["--address", address] if address else []
    right = {"manifest": "m.parquet", "output": "out", "model": str(CHECKPOINT), "prompt": "hi"}
    if changes == "prompts={a: hi} prompt=hi":
        del right["prompt"]
    named = {pair.partition("=")[0] for pair in given}
    own = [f"{key}={value}" for key, value in right.items() if key not in named]
    return ["run", "job.yaml", *own, *given, *options]


def test_they_are_refused_before_ray_starts(here):
    (here / "job.yaml").write_text("job: caption\n")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([arguments_of(changes) for changes in KEYS]),
        cwd=here,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(KEYS) >= 40
    wrong = [
        (changes, code, said, has_ray)
        for (changes, sentence), (code, said, has_ray) in zip(KEYS.items(), answers, strict=True)
        if (code, has_ray) != (2, False)
        or not said.startswith("error: ")
        or sentence not in said
        or any(word in said for word in ("same command", "SECRET"))
        or said.count("\n") != 1
        or len(said) > 2001
    ]
    assert not wrong
    assert not (here / "out").exists() or not any((here / "out").rglob("*.json"))


def test_the_checkpoint_is_checked_in_a_process_of_its_own_where_torch_is_not_loaded(here):
    (here / "job.yaml").write_text("job: caption\n")
    done = subprocess.run(
        [sys.executable, "-m", "mediamill", *arguments_of("image.max_pixels=1")],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {KEYS['image.max_pixels=1']}")


def test_a_library_that_the_users_path_hides_is_said_before_ray_starts(here, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('not the real torch')\n")
    (here / "job.yaml").write_text("job: caption\n")
    done = subprocess.run(
        [sys.executable, "-m", "mediamill", *arguments_of("seed=1")],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the model cannot be used with this installation: ImportError: not the real torch\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("key", ["model", "output", "manifest"])
def test_what_may_not_be_read_or_written_is_said(here, tmp_path, key):
    from mediamill.jobs.cli import main

    place = tmp_path / key
    if key == "model":
        shutil.copytree(CHECKPOINT, place)
        Path(place, "config.json").chmod(0)
    elif key == "output":
        place.mkdir(mode=0o500)
    else:
        write_manifest(place, pa.table({"id": ["a"], "uri": ["b"]})).chmod(0)
    (tmp_path / "job.yaml").write_text("job: caption\n")
    given = {"manifest": here / "m.parquet", "output": tmp_path / "o", "model": CHECKPOINT}
    pairs = [f"{name}={value}" for name, value in (given | {key: place}).items()]
    assert main(["run", str(tmp_path / "job.yaml"), *pairs, "prompt=hi"]) == 2
