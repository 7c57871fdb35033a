"""The command `mediamill`, for `python -m mediamill`."""

from mediamill.jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
