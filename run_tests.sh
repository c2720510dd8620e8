#!/usr/bin/env bash
# Sets everything up and runs every check: ruff, mypy, and the tests. Arguments go to pytest: ./run_tests.sh -k order
# ./run_tests.sh --quick is for while you work: ruff, and the tests that start no program and take no long time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

ruff check .
ruff format --check .
if [ "${1:-}" = --quick ]; then
  shift
  exec pytest --hypothesis-profile quick -m "not (program or long or launcher or slurm or gpu or slow)" "$@"
fi
mypy
pytest "$@"
