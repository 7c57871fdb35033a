"""Runs the soak: `python -m tests.soak --rows 20000 --kills 100 --seed 1`, JSON at the end."""

import argparse
import json
import signal
import sys
from dataclasses import asdict, fields

from tests.soak.soak import Settings, soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Settings):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default)
    settings = Settings(**vars(parser.parse_args()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    report = soak(settings, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(asdict(report), indent=1))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
