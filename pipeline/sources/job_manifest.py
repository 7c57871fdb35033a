"""Says where a job's output has the manifest that is made of the job's source."""

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.job import JobConfig

_NAME = "_manifest"
_OF_ANNOTATION = "_source"  # since _manifest has the windows


def job_manifest(job: JobConfig) -> Place:
    """Returns the place of the manifest, whether it is there yet or not."""
    name = _OF_ANNOTATION if job.job == "annotate" else _NAME
    return storage.resolve(job.output) / name


def is_job_manifest(manifest: str, output: str) -> bool:
    """Returns whether a manifest was made for the output; both are addresses."""
    names = (_NAME, _OF_ANNOTATION)
    return storage.absolute(manifest) in [f"{storage.absolute(output)}/{name}" for name in names]
