#!/bin/sh
# Runs the job file on the cluster that this script is submitted to (RAY_ADDRESS).
# Exit code 3 (finished, some rows are errors) counts as success, since a retry would have nothing to
# do; limits.max_error_rate decides when errors are a failure.
# SIGTERM reaches mediamill too; this shell must outlive it.
trap : TERM INT
mediamill run /etc/mediamill/job.yaml
code=$?
if [ "$code" -eq 3 ]; then
  exit 0
fi
exit "$code"
