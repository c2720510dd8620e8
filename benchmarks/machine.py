"""What a measurement was made on, in words: without it a time means nothing. No host names, no paths."""

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """Return processor, cores that this process may use, memory, GPUs and torch's version, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores", f"{memory:.0f} GiB memory", _gpus()]
    return ", ".join([*parts, f"torch {torch.__version__}"])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    number = torch.cuda.device_count()
    return f"{number} x {torch.cuda.get_device_name(0)}" if number > 1 else torch.cuda.get_device_name(0)


if __name__ == "__main__":
    print(machine())
