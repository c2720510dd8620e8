"""Where whole training steps spend their time, DeepSpeed's part and copies to the GPU included: a trace and a table.

    python benchmarks/train_profile.py FOLDER [--after 20 --steps 3] --recipe FILE --deepspeed_config FILE [section.key=value ...]

Trains with the arguments of trainer/run.py, in one process, and records `--steps` steps once the run is warm.
FOLDER then holds trace.json.gz (for Perfetto) and table.txt.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from profiled import activities, write_profile
from torch.profiler import profile, schedule

from m3p.training.deepspeed.engine import DeepSpeedEngine
from m3p.training.engine import Update
from m3p.training.losses import StepLosses
from m3p.training.main import main as train


def main() -> None:
    """Train with a profiler that is told of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--after", type=int, default=20, help="steps before the run is warm")
    parser.add_argument("--steps", type=int, default=3, help="steps to record")
    options, arguments = parser.parse_known_args()
    on_gpu = torch.cuda.is_available()
    plan = schedule(wait=options.after, warmup=1, active=options.steps, repeat=1)
    step = DeepSpeedEngine.step
    with profile(
        activities=activities(on_gpu), schedule=plan, on_trace_ready=partial(write_profile, options.folder, on_gpu)
    ) as profiler:

        def noted(engine: DeepSpeedEngine, share: float, losses: StepLosses, ceiling: float | None) -> Update:
            done = step(engine, share, losses, ceiling)
            profiler.step()
            return done

        DeepSpeedEngine.step = noted  # type: ignore[assignment, method-assign]
        train(arguments)


if __name__ == "__main__":
    main()
