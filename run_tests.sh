#!/usr/bin/env bash
# Sets everything up and runs every check: ruff, mypy, and the tests. Arguments go to pytest: ./run_tests.sh -k order
# ./run_tests.sh --quick is for while you work: ruff, and the tests that start no program and take no long time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

ruff check .
ruff format --check .
ranks="launcher or slurm or gpu"
side_by_side=(-n 3 --dist loadfile --no-loadscope-reorder)  # as collected: the longest files are not the last
export OMP_NUM_THREADS=1 # a core for each
if [ "${1:-}" = --quick ]; then
  shift
  exec pytest "${side_by_side[@]}" --hypothesis-profile quick -m "not (program or long or slow or $ranks)" "$@"
fi
mypy
case " $* " in *" -m "*) exec pytest "$@" ;; esac
no_test=5 ran=0 failed=0
count() { case $1 in 0) ran=1 ;; "$no_test") ;; *) failed=1 ;; esac; }
durations=(--durations=30 --durations-min=5)
# Beside the others, one after another: there is one Slurm cluster and one device, and these tests mostly wait.
one_by_one=$(mktemp)
set -m # a group of its own, so that Ctrl-C reaches it
pytest "${durations[@]}" -m "not slow and (slurm or gpu)" "$@" >"$one_by_one" 2>&1 &
set +m
trap 'kill -INT -- -$! 2>/dev/null || true; wait; rm -f "$one_by_one"' EXIT
code=0; pytest "${side_by_side[@]}" "${durations[@]}" -m "not (slow or slurm or gpu)" "$@" || code=$?; count "$code"
code=0; wait $! || code=$?; count "$code"
cat "$one_by_one"
[ "$failed" = 0 ] && [ "$ran" = 1 ]
