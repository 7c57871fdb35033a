"""Runs a submitted job on the cluster, or says which packages its interpreter lacks.

It is uploaded beside job.yaml, so it may import only the standard library before it has looked.
"""

import platform
import sys
from importlib.util import find_spec

JOB_FILE = "job.yaml"
# Import names of the packages that a job cannot do without, and their names for pip.
NEEDED = {
    "av": "av",
    "fsspec": "fsspec",
    "idna": "idna",
    "jinja2": "jinja2",
    "jsonschema": "jsonschema",
    "llguidance": "llguidance",
    "numpy": "numpy",
    "pandas": "pandas",
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "pillow_jxl": "pillow-jxl-plugin",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "ray": "'ray[data]'",
    "referencing": "referencing",
    "rich": "rich",
    "s3fs": "s3fs",
    "safetensors": "safetensors",
    "simplejpeg": "simplejpeg",
    "tokenizers": "tokenizers",
    "torch": "torch",
}


def main() -> int:
    """Runs the job and returns its exit code: 2 when packages are missing."""
    where = f"{sys.executable}, which runs Ray on {platform.node()},"
    missing = [package for name, package in NEEDED.items() if find_spec(name) is None]
    if find_spec("mediamill") is None:
        remedy = (
            "submit with --code, which uploads it"
            if not missing
            else "--code alone would not do, since it uploads none of the packages it needs"
        )
        text = f"{where} does not have mediamill: install it there, or {remedy}"
        if missing:
            text = f"{where} does not have mediamill: install it there; {remedy}"
    elif missing:
        text = (
            f"{where} lacks packages that mediamill needs, and --code uploads only mediamill "
            f"itself: {sys.executable} -m pip install {' '.join(missing)}"
        )
    else:
        from mediamill.jobs.start import main as run

        sys.argv = ["mediamill", "run", JOB_FILE]
        return run()
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
