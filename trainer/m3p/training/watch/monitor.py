"""Figures of every step: a progress bar, TensorBoard, and one JSON line a step. Rank 0 writes."""

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from m3p.atomic import replacing
from m3p.errors import UserError
from m3p.model.flops import Work
from m3p.terminal import message
from m3p.training.watch.bad_report import BadReport
from m3p.training.watch.seen import Seen
from m3p.training.watch.throughput import Throughput

MIN_SAMPLES_TO_JUDGE = 200
"""Samples after which the share of bad ones is judged."""
SHOWN_BAD = 20


class Monitor:
    """Adds up what the ranks saw, and writes the figures once a step."""

    def __init__(
        self,
        folder: Path,
        first_step: int,
        steps: int,
        max_bad_share: float,
        main: bool,
        throughput: Throughput | None = None,
    ) -> None:
        self._throughput = throughput
        self._folder, self._max_bad_share = folder, max_bad_share
        self._writer: SummaryWriter | None = None
        self._bar: tqdm[Any] | None = None
        self._waited, self._began = 0.0, time.perf_counter()
        self._counts: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self._bad: defaultdict[int, list[str]] = defaultdict(list)
        """Rank -> bad samples of the step."""
        self._report = BadReport(folder, first_step) if main else None
        if main:
            for name in ("metrics.jsonl", "skipped.jsonl"):
                _forget_after(folder / name, first_step)
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
            often = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file keeps every line
            self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=often)

    def waited(self, seconds: float) -> None:
        """Note time that the training process spent waiting for data."""
        self._waited += seconds

    def saw(self, every: Sequence[Seen]) -> None:
        """Note what the ranks saw in a pass, by rank."""
        for rank, (counts, bad) in enumerate(every):
            self._counts.update(counts)
            self._bad[rank] += bad

    def added(self, work: Work) -> None:
        """Note the work of pairs that training added to those that the ranks saw (hard negatives), over all ranks."""
        self._counts["tokens"] += round(work.slots)
        self._counts["flops"] += self._throughput.flops_of(work) if self._throughput else 0

    def step(self, step: int, losses: Mapping[str, float], loss: float, rate: float, norm: float) -> None:
        """Write the figures after `step` steps. Every rank calls it. Raises UserError where too many samples are bad.

        `losses`: mean of each task, by "OBJECTIVE/TASK". `loss`: what the step minimised, in which objectives count by their
        turns, times the number of objectives (`StepLosses.figures`).
        """
        counts, bad = self._counts, [name for _, names in sorted(self._bad.items()) for name in names]
        seconds = time.perf_counter() - self._began
        self._total += counts
        if self._writer is not None:
            figures = {
                "step": step,
                "loss": loss,
                "losses": losses,
                "learning_rate": rate,
                "gradient_norm": norm,
                "samples_per_second": counts["samples"] / seconds,
                "tokens_per_second": counts["tokens"] / seconds,
                "data_wait_share": min(self._waited / seconds, 1.0),
                "seconds": seconds,
                **(self._throughput.figures(counts["flops"], counts["tokens"], seconds) if self._throughput else {}),
            }
            self._write(figures, counts, bad)
        self._check_bad(bad)
        self._waited, self._began = 0.0, time.perf_counter()
        self._bad.clear()
        self._counts.clear()

    def say(self, line: str) -> None:
        """Print a line above the progress bar, and keep it with TensorBoard's texts. Rank 0 only."""
        if self._writer is not None:
            tqdm.write(message(line), file=sys.stderr)
            self._writer.add_text("events", line)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
        if self._bar is not None:
            self._bar.close()

    def _write(self, figures: dict[str, Any], counts: Counter[str], bad: list[str]) -> None:
        assert self._writer is not None and self._bar is not None  # noqa: PT018
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(_finite(figures)) + "\n")
        step = figures["step"]
        for name in (
            "loss",
            "learning_rate",
            "gradient_norm",
            "samples_per_second",
            "tokens_per_second",
            "data_wait_share",
            "teraflops",
            "mfu",
            "mfu_6nd",
            "peak_memory_gib",
        ):
            if name in figures:
                self._writer.add_scalar(name, figures[name], step)
        for name, value in figures["losses"].items():
            self._writer.add_scalar(f"losses/{name}", value, step)
        for name, value in self._shares().items():
            self._writer.add_scalar(name, value, step)
        self._writer.add_scalar("bad_samples", self._total["bad_samples"], step)
        assert self._report is not None
        self._report.add(step, bad)
        if bad:
            for reason, number in self._report.reasons.items():
                self._writer.add_scalar(f"bad_samples_by_reason/{reason}", number, step)
            for shard, reasons in self._report.shards.items():
                self._writer.add_scalar(f"bad_samples_by_shard/{shard}", reasons.total(), step)
        for name in ("trainer", "workers"):
            if f"resident/{name}" in counts:
                self._writer.add_scalar(f"resident_gib/{name}", counts[f"resident/{name}"] / 2**30, step)
        postfix = f"loss {figures['loss']:.3f}, {figures['samples_per_second']:.0f} samples/s"
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update()

    def _shares(self) -> dict[str, float]:
        """The realised mix since this start: shares of each objective, language, switch target, and of texts cut to a window."""
        shares = {}
        for name, number in self._total.items():
            if name.startswith("samples/"):
                shares[f"mix/{name.removeprefix('samples/')}"] = number / self._total["samples"]
            elif "/language/" in name:
                objective, _, language = name.split("/", 2)
                shares[f"mix_{objective}/{language}"] = number / self._total[f"samples/{objective}"]
            elif "/switching/" in name:
                objective, _, what = name.split("/", 2)
                shares[f"switching_{objective}/{what}"] = number / self._total[f"{objective}/switching/words"]
            elif name.endswith("/text/windows"):
                objective = name.removesuffix("/text/windows")
                shares[f"texts_longer_than_max_tokens/{objective}"] = number / self._total[f"samples/{objective}"]
        return shares

    def _check_bad(self, bad: list[str]) -> None:
        total, samples = self._total["bad_samples"], self._total["samples"]
        if samples >= MIN_SAMPLES_TO_JUDGE and total > self._max_bad_share * samples:
            shown = "\n".join(f"  - {name}" for name in bad[:SHOWN_BAD])
            raise UserError(
                f"{total} of {samples} samples are bad, more than data.max_bad_share = {self._max_bad_share}. The last "
                f"ones:\n{shown}\n"
                f"All are listed in {self._folder / 'bad_samples.txt'}. Mend or leave out their shards, or raise the limit."
            )


def _finite(node: Any) -> Any:
    """Return figures with null for what is not finite; JSON has no word for it."""
    if isinstance(node, dict):
        return {name: _finite(value) for name, value in node.items()}
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run does again, and those that are no figures: cut by a kill, or not ours."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            figures = json.loads(line)
        except (ValueError, RecursionError):  # of bytes that are no text, too
            continue
        if isinstance(figures, dict) and isinstance(figures.get("step"), int) and figures["step"] <= step:
            kept.append(line)
    with replacing(path) as aside:
        aside.write_bytes(b"".join(line + b"\n" for line in kept))
