#!/usr/bin/env bash
# Sets everything up and runs every check: ruff, mypy, and the tests. Arguments go to pytest: ./run_tests.sh -k order
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

ruff check .
ruff format --check .
mypy
pytest "$@"
