"""Checks that the workers of a Ray cluster can import this program."""

from importlib.util import find_spec

from mediamill.pipeline.faults import PermanentError

_WAIT_S = 60.0
_PACKAGE = "mediamill"


def check_workers(address: str) -> None:
    """Raises PermanentError if a worker of the connected cluster does not have this program.

    Without it, each actor dies while it starts, and Ray does not say why. A cluster that has no
    worker within a minute is not checked.
    """
    import ray

    try:
        # A function of our own could not be imported there.
        spec = ray.get(ray.remote(num_cpus=0)(find_spec).remote(_PACKAGE), timeout=_WAIT_S)
    except Exception:  # noqa: BLE001 - the job finds out itself what is wrong
        return
    if spec is None:
        raise PermanentError(
            f"the Ray cluster at {address} does not have {_PACKAGE}: install it in the environment "
            "that runs Ray there, or use mediamill submit --code, which uploads it"
        )
