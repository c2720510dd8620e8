"""Runs the trainer, and has rank 0 write the gradients of the step that it is about to take beside the run's folder."""

import runpy
import sys
from pathlib import Path

# Else the tests' own folder `deepspeed`, beside this file, would stand for the library.
sys.path[0] = str(Path(__file__).parents[2])

from safetensors.torch import save_file  # noqa: E402

from m3p import distributed  # noqa: E402
from m3p.training.deepspeed.engine import DeepSpeedEngine  # noqa: E402

take_norm = DeepSpeedEngine._plain_norm


def write_and_take(self: DeepSpeedEngine) -> float:
    """Write the gradients where the norm is taken: ZeRO 0 leaves the averaged ones on the parameters."""
    if distributed.is_main():
        gradients = {name: p.grad for name, p in self.deepspeed.module.named_parameters() if p.grad is not None}
        save_file(gradients, sys.argv[-1].removeprefix("run.folder=") + ".gradients")
    return take_norm(self)


DeepSpeedEngine._plain_norm = write_and_take  # type: ignore[method-assign]  # the point of this file

if __name__ == "__main__":
    sys.argv = [str(Path(__file__).parents[2] / "trainer" / "run.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
