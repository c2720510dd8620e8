"""Train a recipe: `deepspeed trainer/run.py --recipe FILE|NAME --deepspeed_config FILE|NAME [section.key=value ...]`.

The program is m3p/training/main.py; this file starts it from a checkout, whatever is installed.
"""

import sys
from pathlib import Path

# The folder of this file is the source root of the package m3p: first, so that this checkout's own code runs.
sys.path[0] = str(Path(__file__).resolve().parent)

from m3p.training.main import run  # noqa: E402

if __name__ == "__main__":
    run(sys.argv[1:])
