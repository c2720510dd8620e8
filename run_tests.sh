#!/usr/bin/env bash
# Sets everything up and runs every check: ruff, mypy, and the tests. Arguments go to pytest: ./run_tests.sh -k order
# ./run_tests.sh --quick is for while you work: ruff, and the tests that start no program and take no long time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

ruff check .
ruff format --check .
ranks="launcher or slurm or gpu"
# Three on two cores, since many tests wait; as collected: the longest files are not the last.
side_by_side=(-n 3 --dist loadfile --no-loadscope-reorder)
export OMP_NUM_THREADS=1 # a core for each
if [ "${1:-}" = --quick ]; then
  shift
  exec pytest "${side_by_side[@]}" --hypothesis-profile quick -m "not (program or long or slow or $ranks)" "$@"
fi
mypy
case " $* " in *" -m "*) exec pytest "$@" ;; esac
no_test=5 ran=0 failed=0
run() {
  local code=0
  pytest --durations=30 --durations-min=5 "$@" || code=$?
  case $code in 0) ran=1 ;; "$no_test") ;; *) failed=1 ;; esac
}
run "${side_by_side[@]}" -m "not (slow or slurm or gpu)" "$@"
run -m "not slow and (slurm or gpu)" "$@"  # one by one: there is one cluster, and one device
[ "$failed" = 0 ] && [ "$ran" = 1 ]
