#!/bin/sh
# Runs run_job.py with the interpreter that runs Ray on this machine, which need not be on PATH.
# The command line of the raylet names it, and this shell is a descendant of the raylet.
set -u
pid=$PPID
python=
while [ -z "$python" ] && [ "${pid:-0}" -gt 1 ]; do
  if [ -r "/proc/$pid/cmdline" ]; then
    words=$(tr '\0' '\n' <"/proc/$pid/cmdline")
    parent=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
  else
    words=$(ps -ww -o command= -p "$pid" | tr ' ' '\n')
    parent=$(ps -o ppid= -p "$pid" | tr -d ' ')
  fi
  python=$(printf '%s\n' "$words" | sed -n 's/^--python_worker_command=\([^ ]*\).*/\1/p')
  pid=$parent
done
if [ ! -x "$python" ]; then
  python=$(command -v python3 || command -v python) || {
    echo "error: no Python was found on $(hostname), expected the one that runs Ray" >&2
    exit 2
  }
fi
exec "$python" run_job.py
