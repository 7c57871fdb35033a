"""`mediamill manifest`, and sources in place of manifests, through the command line's functions."""

import json
import os

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mediamill.jobs import cli
from mediamill.jobs.manifest import resolve_manifest
from mediamill.pipeline.plan import check
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import load_job
from tests.pipeline.sources.drawn import tar_bytes, zip_bytes


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(folder / name)


def make(tmp_path, source="photos", job="caption", **values):
    keys = {"manifest": str(tmp_path / source), "output": str(tmp_path / "out")}
    return load_job(None, {**keys, "model": "built-in", **values}, job=job)


def test_the_command_tells_what_it_found(tmp_path, capsys):
    draw(tmp_path / "photos", "a.png", "sub/b.jpg")
    (tmp_path / "photos" / "notes.md").write_text("x")
    arguments = ["manifest", str(tmp_path / "photos"), str(tmp_path / "m")]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/m: 2 rows, 2 of them new (folder)\n"
    assert "left out 1: neither a picture nor a video by its suffix (namely: notes.md)" in err
    draw(tmp_path / "photos", "c.png")
    (tmp_path / "photos" / "a.png").unlink()
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["rows"], summary["new"], summary["gone"]) == (3, 1, 1)
    assert summary["left_out"][0]["count"] == 1
    assert "1 rows of earlier runs are no longer in the source" in err


def test_probe_reads_headers(tmp_path):
    draw(tmp_path / "p", "a.png", "b.gif")
    (tmp_path / "p" / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "p" / "d.jpg").write_bytes(b"")
    assert cli.main(["manifest", str(tmp_path / "p"), str(tmp_path / "m"), "--probe"]) == 0
    found = pq.read_table(tmp_path / "m" / "part-000000.parquet").to_pylist()
    keys = ("source_bytes", "source_kind", "source_height", "source_width", "source_duration_s")
    size = (tmp_path / "p" / "a.png").stat().st_size
    assert [tuple(row[key] for key in keys) for row in found] == [
        (size, "image", 20, 30, None),
        ((tmp_path / "p" / "b.gif").stat().st_size, "image", 20, 30, None),
        (10, None, None, None, None),
        (None,) * 5,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "m"], "found no such file or folder"),
        (["photos"], "the following arguments are required"),
        (["photos", "m", "--as", "movie"], "invalid choice"),
        (["photos", "photos"], "which this command did not write"),
    ],
)
def test_wrong_uses(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos", "a.png")
    assert cli.main(["manifest", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_job_takes_a_folder_and_grows_with_it(tmp_path, capsys):
    draw(tmp_path / "photos", "a.png", "b.png")
    job = resolve_manifest(make(tmp_path))
    assert job.manifest == str(tmp_path / "out" / "_manifest")
    assert job.prompt == "Describe the picture."
    assert job.fetch.roots == (str(tmp_path / "photos"), ".")
    assert 'each row is asked "Describe the picture."' in capsys.readouterr().err
    plan = check(job)
    assert plan.manifest.rows == 2
    assert not list(tmp_path.glob("out/**/*.parquet"))  # a reader of the output would take it
    draw(tmp_path / "photos", "aa.png")
    again = check(resolve_manifest(make(tmp_path)))
    assert again.manifest.rows == 3
    assert again.fingerprint == plan.fingerprint


@pytest.mark.parametrize("values", [{"prompt": "What?"}, {"prompts": {"a": "What?", "b": "Who?"}}])
def test_a_prompt_of_the_job_stays(tmp_path, values):
    draw(tmp_path / "photos", "a.png")
    job = resolve_manifest(make(tmp_path, **values))
    assert (job.prompt, bool(job.prompts)) == (values.get("prompt"), "prompts" in values)


def test_prompts_of_a_table_and_jobs_without_prompts_need_none(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("id,url,prompt\n1,a.png,What?\n")
    assert resolve_manifest(make(tmp_path, "t.csv")).prompt is None
    draw(tmp_path / "photos", "a.png")
    other = make(tmp_path, job="embed", output=str(tmp_path / "vectors"))
    assert resolve_manifest(other).prompt is None


def test_a_parquet_manifest_stays_what_it_is(tmp_path):
    draw(tmp_path / "photos", "a.png")
    assert cli.main(["manifest", str(tmp_path / "photos"), str(tmp_path / "m")]) == 0
    for name in ("m", "m/part-000000.parquet", "m/*.parquet", "none"):
        job = make(tmp_path, name)
        assert resolve_manifest(job) is job


def test_an_output_around_its_source_is_refused(tmp_path):
    draw(tmp_path / "out" / "photos", "a.png")
    for source in ("out", "out/photos"):
        with pytest.raises(JobError, match="expected a folder apart from it"):
            resolve_manifest(make(tmp_path, source))
    assert not (tmp_path / "out" / "_manifest").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_job_notices_that_an_archive_has_changed(tmp_path, name):
    draw = tar_bytes if name == "a.tar" else zip_bytes
    archive = tmp_path / "archives" / name
    archive.parent.mkdir()
    archive.write_bytes(draw([("0.jpg", b"first"), ("1.jpg", b"second")]))
    status = archive.stat()
    assert cli.main(["manifest", str(archive.parent), str(tmp_path / "m")]) == 0
    job = make(tmp_path, "m")
    archive.chmod(0o600)  # no other content
    assert resolve_manifest(job) is job
    archive.write_bytes(draw([("0.jpg", b"longer"), ("1.jpg", b"than")]))
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(JobError, match=rf"/archives/{name} has changed since .*in a new folder"):
        resolve_manifest(job)
    archive.unlink()
    assert resolve_manifest(job) is job  # the rows tell that it is gone
