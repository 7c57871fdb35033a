"""One sentence for whatever error ends a run, Ray's own among them."""

import pytest
import ray
from ray.data.exceptions import SystemException

from mediamill.pipeline.faults import PermanentError, root_cause, stopped_by

REMOTE = """ray::Map() (pid=1)
  File "a.py", line 1, in f
ray.data.exceptions.SystemException

The above exception was the direct cause of the following exception:

ray::Map() (pid=1)
  File "b.py", line 2, in g
OSError: No space left on device"""


def raised(error, cause):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def task_error(text, cause):
    return ray.exceptions.RayTaskError("Map()", text, cause, pid=1, ip="127.0.0.1")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (raised(OSError("disk"), SystemException()), "OSError: disk"),
        (SystemException(), "Ray Data ended the run without a reason"),
        (raised(SystemException(), SystemException()), "Ray Data ended the run without a reason"),
        (raised(SystemException(), OSError("disk")), "OSError: disk"),
        (task_error(REMOTE, SystemException()), "OSError: No space left on device"),
        (
            raised(
                task_error(REMOTE, OSError("No space left on device")).as_instanceof_cause(),
                SystemException(),
            ),
            "OSError: No space left on device",
        ),
        (
            task_error(REMOTE.partition("\n\n")[0], SystemException()),
            "Ray Data ended the run without a reason",
        ),
        (SystemException("Ray's own words\nand more"), "SystemException: Ray's own words"),
    ],
)
def test_the_empty_error_of_ray_data_is_never_the_reason(error, sentence):
    assert root_cause(error).startswith(sentence)
    assert not isinstance(stopped_by(error), PermanentError)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "No space left on device", "Failed to apply UDF transform after 1/1 tries"),
            "a disk is full: expected free space for the output and for temporary files (OSError: "
            "[Errno 28] No space left on device)",
        ),
        (
            OSError(30, "Read-only file system", "/data/out/part"),
            "a file system is read-only: expected one that can be written (OSError: [Errno 30] "
            "Read-only file system: '/data/out/part')",
        ),
        (
            task_error(
                "ray::f()\n  File \"a.py\", line 1\nPermissionError: [Errno 13] x: 'y'", None
            ),
            "a file or folder may not be used: expected permission (PermissionError: [Errno 13] x: "
            "'y')",
        ),
    ],
)
def test_a_state_of_the_machine_that_stays_has_to_be_mended(error, sentence):
    stopped = stopped_by(error)
    assert isinstance(stopped, PermanentError)
    assert (str(stopped), stopped.in_job) == (sentence, False)
