"""The command `mediamill`, for `python -m mediamill`."""

import sys

if __name__ == "__main__":
    # -m puts the current folder first: a user's own random.py there would be taken for Python's.
    # Nothing is imported to find out, for it would come from there.
    if not sys.flags.safe_path and sys.path[0] != __file__.rpartition("/mediamill/")[0]:
        del sys.path[0]
    from mediamill.jobs.start import main

    raise SystemExit(main())
