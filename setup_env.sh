# Sourced by quickstart.sh and run_tests.sh: makes .venv in the checkout, installs the pinned packages once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "Python 3.11 or newer is needed; $python is $("$python" -V). Set PYTHON=/path/to/python3.11" >&2; exit 2; }
# A stamp of what is installed: the second start installs nothing and needs no network.
stamp=.venv/installed.$(cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "Installing into $PWD/.venv (about 2 GB; once)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --requirement requirements.txt --editable .
  rm -f .venv/installed.* && touch "$stamp"
fi
export PATH=$PWD/.venv/bin:$PATH PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}
