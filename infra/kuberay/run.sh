#!/bin/sh
# Runs the job file on the cluster that this is submitted to (RAY_ADDRESS names it).
# Exit code 3 means: finished, and some rows are errors. It counts as done, because a retry would
# find nothing to do; limits.max_error_rate says when errors are a failure.
# SIGTERM reaches mediamill too; this shell only has to outlive it.
trap : TERM INT
mediamill run /etc/mediamill/job.yaml
code=$?
if [ "$code" -eq 3 ]; then
  exit 0
fi
exit "$code"
