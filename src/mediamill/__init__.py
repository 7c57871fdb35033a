"""Captions, annotates, scores and embeds pictures and videos in bulk, from Parquet to Parquet.

`mediamill.model` is the model and its engine, usable alone. `mediamill.pipeline.run.run` runs a job
on Ray. `mediamill.jobs` is the command line, also started by `python -m mediamill`.
"""
