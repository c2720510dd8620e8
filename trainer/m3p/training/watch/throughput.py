"""Model FLOPs utilisation and peak memory: what the hardware gives, and how much of it is used."""

import resource
from pathlib import Path

import torch

from m3p.batch import Batch
from m3p.model.flops import NetworkSizes, Work, peak_flops


class Throughput:
    """Counts operations, and says them as a share of the peak of all ranks' GPUs."""

    def __init__(
        self, sizes: NetworkSizes, device: torch.device, precision: torch.dtype, ranks: int, partly: bool
    ) -> None:
        self._sizes, self._device = sizes, device
        peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
        # With frozen layers, or texts that are remembered, the formula would count what nobody computes.
        self._peak = None if peak is None or partly else peak * ranks

    def flops(self, batch: Batch) -> int:
        """Return the operations of training on `batch`, which is on the CPU."""
        return self.flops_of(Work.of(batch)) if batch.samples else 0

    def flops_of(self, work: Work) -> int:
        """Return the operations of training on `work`."""
        return round(self._sizes.training_flops(work))

    def figures(self, flops: int, tokens: int, seconds: float) -> dict[str, float]:
        """Return teraflops of all ranks, MFU where the peak is known, and this rank's peak memory since its start.

        Beside MFU (`flops.FORMULA`) stands what 6ND over the encoder's parameters would say of the same `tokens`.
        """
        figures = {"teraflops": flops / seconds / 1e12, "peak_memory_gib": peak_memory(self._device) / 2**30}
        if self._peak is None:
            return figures
        others = 6 * self._sizes.encoder_weights * tokens
        return {**figures, "mfu": flops / seconds / self._peak, "mfu_6nd": others / seconds / self._peak}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: of the GPU, as torch counts them, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would hand down the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
