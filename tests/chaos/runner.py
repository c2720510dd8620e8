"""Runs trainer/run.py with faults at chosen points: `runner.py FAULTS.json` and the trainer's own arguments.

FAULTS.json is a list of {"point", "step", "rank" (all ranks, if left out), ...}. The program under test holds no hook: its
functions are wrapped here.
"""

import hashlib
import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    (faults_file,) = [argument for argument in sys.argv if argument.endswith(".faults.json")]
    sys.argv.remove(faults_file)
    sys.argv[0] = str(ROOT / "trainer" / "run.py")
    rank = int(os.environ["RANK"])
    for fault in json.loads(Path(faults_file).read_text()):
        if fault.get("rank", rank) == rank:
            POINTS[fault["point"]](fault)
    runpy.run_path(sys.argv[0], run_name="__main__")


def wrap(owner: Any, name: str, function: Any) -> None:
    """Put `function` in place of a function of the program."""
    setattr(owner, name, function)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_share(fault: dict[str, Any]) -> None:
    """Die when half of the rank's share is written."""
    from m3p.checkpoints import files

    real: Any = vars(files)["save_file"]

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        if f"step-{fault['step']:08d}" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    wrap(files, "save_file", save_file)


def at_state(fault: dict[str, Any]) -> None:
    """Die when all shares are written, state.json is not."""
    from m3p.checkpoints import files

    real = files.write_state

    def write_state(folder: Path, state: Any) -> None:
        if state.step == fault["step"]:
            die()
        real(folder, state)

    wrap(files, "write_state", write_state)


def at_rename(fault: dict[str, Any]) -> None:
    """Die before (or after) one rename: of the folder to its name, or of `latest`."""
    real = os.replace
    step = f"step-{fault['step']:08d}"

    def replace(source: Any, target: Any, **other: Any) -> None:
        name = Path(target).name
        hit = name == step if fault["of"] == "folder" else name == "latest" and Path(source).read_text().strip() == step
        if hit and not fault["after"]:
            die()
        real(source, target, **other)
        if hit:
            die()

    wrap(os, "replace", replace)


def at_prune(fault: dict[str, Any]) -> None:
    """Die when half of an old checkpoint is removed."""
    real = shutil.rmtree

    def rmtree(path: Any, *others: Any, **other: Any) -> None:
        if str(path).endswith(".old.partial"):
            min(Path(path).iterdir()).unlink()
            die()
        real(path, *others, **other)

    wrap(shutil, "rmtree", rmtree)


def poison(fault: dict[str, Any]) -> None:
    """Make the pictures of one micro-batch NaN (`what` = batch), or a gradient while losses are finite (`what` = gradient)."""
    from m3p.training.deepspeed import engine as module

    now = _know_the_step()
    real = module.DeepSpeedEngine.turns

    def turns(self: Any, data: Any, losses: Any, last: bool) -> None:
        hurt = [one for one in data if one.turn.objective == "image_caption"]
        hit = now[0] in range(fault["step"], fault.get("until", fault["step"]) + 1) and hurt
        if hit and fault["what"] == "batch":
            hurt[0].batches[0].visual_features.fill_(float("nan"))
        backward = self.deepspeed.backward

        def poisoned(loss: Any, **other: Any) -> None:
            loss.register_hook(lambda gradient: gradient * float("nan"))
            backward(loss, **other)

        if hit and fault["what"] == "gradient":
            self.deepspeed.backward = poisoned
        real(self, data, losses, last)
        self.deepspeed.__dict__.pop("backward", None)

    wrap(module.DeepSpeedEngine, "turns", turns)


def stall(fault: dict[str, Any]) -> None:
    """Sleep for ever in place of one turn."""
    import time

    from m3p.training.deepspeed import engine as module

    now = _know_the_step()
    real = module.DeepSpeedEngine.turns

    def turns(self: Any, *others: Any, **more: Any) -> None:
        if now[0] == fault["step"]:
            time.sleep(10_000)
        real(self, *others, **more)

    wrap(module.DeepSpeedEngine, "turns", turns)


def record(fault: dict[str, Any]) -> None:
    """Write what the oracle compares into `folder`: each micro-batch, and the state restored before the first step."""
    from m3p.checkpoints import files, save
    from m3p.training import train
    from m3p.training.deepspeed import engine as module
    from tests.batches import sequences

    folder, rank = Path(fault["folder"]), int(os.environ["RANK"])
    folder.mkdir(parents=True, exist_ok=True)
    now = _know_the_step()
    real_turns, real_restore = module.DeepSpeedEngine.turns, vars(train)["restore"]

    def turns(self: Any, data: Any, losses: Any, last: bool) -> None:
        with (folder / f"batches-{rank}.jsonl").open("a") as file:
            for name, batch in ((one.turn.objective, batch) for one in data for batch in one.batches):
                tensors = [batch.token_ids, batch.visual_features, batch.visual_boxes, batch.lengths]
                tensors += [tensor for _, of in sorted(batch.targets.items()) for _, tensor in sorted(of.items())]
                digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
                line = {"step": now[0], "objective": name, "names": batch.names, "digest": digest}
                line["words"] = sequences(batch) if batch.samples else []
                line["features"] = (
                    batch.visual_features[batch.visual_rows].double().sum(1).tolist() if batch.samples else []
                )
                file.write(json.dumps(line) + "\n")
        real_turns(self, data, losses, last)

    def restore(path: Path, state: Any, engine: Any, ranks: Any) -> None:
        real_restore(path, state, engine, ranks)
        files.write_share(folder / files.share_name(rank), *save._copy_share(engine, ranks))

    wrap(module.DeepSpeedEngine, "turns", turns)
    wrap(train, "restore", restore)


def collectives(fault: dict[str, Any]) -> None:
    """Write into `folder` what each step asks of other ranks and what it reads of tensors, in order: one JSON list a step.

    An event is [thread, "host" or "device" (what a collective joins), or "read"]. It is modelled on a CPU: numbers with a point
    lie on the device, so they are summed in the group that stands for NCCL's, and all else goes through groups of its own, as on
    a GPU. What `grouped` attention reads is left out, which no GPU takes in 16 bits.
    """
    import threading
    from functools import cache

    import torch
    import torch.distributed as dist

    from m3p import distributed
    from m3p.model.attention import Layout
    from m3p.training import train  # noqa: F401  # with all that sums
    from m3p.training.loop import Loop

    folder, events, groups = Path(fault["folder"]), list[list[str]](), list[Any]()
    folder.mkdir(parents=True, exist_ok=True)
    arranging = threading.local()

    def new_group(*others: Any) -> Any:
        groups.append(dist.new_group(backend="gloo"))
        return groups[-1]

    def all_reduce_sum(tensor: Any, group: Any = None) -> Any:
        return real_sum(tensor, group or (dist.group.WORLD if tensor.is_floating_point() else None))

    real_sum = distributed.all_reduce_sum
    wrap(distributed, "_host_group", cache(new_group))
    for module in [module for name, module in sys.modules.items() if name.startswith("m3p.")]:
        for function in (new_group, all_reduce_sum):
            name = "new_host_group" if function is new_group else "all_reduce_sum"
            if hasattr(module, name):
                wrap(module, name, function)

    def noting(real: Any, kind: Any) -> Any:
        def call(*others: Any, **more: Any) -> Any:
            if not getattr(arranging, "now", False):
                events.append([threading.current_thread().name, kind(more)])
            return real(*others, **more)

        return call

    def group_of(more: dict[str, Any]) -> str:
        return "host" if any(more.get("group") is group for group in groups) else "device"

    real_arrange = Layout.arrange

    def arrange(self: Any, *others: Any) -> Any:
        arranging.now = True
        try:
            return real_arrange(self, *others)
        finally:
            arranging.now = False

    wrap(Layout, "arrange", arrange)
    for name in COLLECTIVES:
        wrap(dist, name, noting(getattr(dist, name), group_of))
    for name in READS:
        wrap(torch.Tensor, name, noting(getattr(torch.Tensor, name), lambda more: "read"))
    real = Loop.step

    def step(self: Any, number: int, *others: Any) -> Any:
        with (folder / f"events-{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps(events) + "\n")
        events.clear()
        return real(self, number, *others)

    wrap(Loop, "step", step)


def share_contrast(fault: dict[str, Any]) -> None:
    """Share the contrastive loss of any turn over ranks, and add a line with its own pairs to `file` + rank each time."""
    from m3p.objectives.tasks import contrastive

    real: Any = vars(contrastive)["shared_pair_cross_entropy"]

    def shared(text: Any, image: Any, captions: Any, pictures: Any, own: Any, all_sum: Any) -> Any:
        with open(fault["file"] + os.environ["RANK"], "a") as file:
            file.write(f"{len(own)} {len(text)}\n")
        return real(text, image, captions, pictures, own, all_sum)

    wrap(contrastive, "MAX_UNSHARED_PAIRS", 1)
    wrap(contrastive, "shared_pair_cross_entropy", shared)


COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "barrier", "broadcast", "broadcast_object_list",
    "reduce", "reduce_scatter", "reduce_scatter_tensor", "gather", "gather_object", "scatter", "scatter_object_list",
    "all_to_all", "all_to_all_single", "all_reduce_coalesced", "all_gather_coalesced", "monitored_barrier", "send", "recv",
    "isend", "irecv", "batch_isend_irecv",
)  # fmt: skip
READS = (
    "item", "tolist", "__float__", "__bool__", "__int__", "__index__", "__contains__", "cpu", "numpy", "nonzero", "equal",
    "allclose",
)  # fmt: skip
"""Methods of a tensor that wait for a device."""


def logits(fault: dict[str, Any]) -> None:
    """When training is done, save the word logits of `tokens` as the run's own engine computes them, on every rank."""
    import numpy as np
    import torch

    from m3p.batch import Sequence
    from m3p.packing import Packer
    from m3p.training.loop import Loop

    real = Loop.run

    def run(self: Any, *others: Any) -> Any:
        ended = real(self, *others)
        engine = self._engine.deepspeed
        engine.eval()
        packer = Packer(*engine.module.features)
        tokens = np.array(fault["tokens"])
        packer.add(Sequence(tokens))
        packer.target("masked_words", slots=np.arange(len(tokens)))
        with torch.no_grad():
            found = engine(packer.finish(1)).tasks["masked_words"]
        torch.save(found.float(), fault["file"] + os.environ["RANK"])
        return ended

    wrap(Loop, "run", run)


def _know_the_step() -> list[int]:
    """Return a list whose only element is always the step under way, counted from 1."""
    from m3p.training.loop import Loop

    now, real = [0], Loop.step

    def step(self: Any, number: int, *others: Any) -> Any:
        now[0] = number
        return real(self, number, *others)

    wrap(Loop, "step", step)
    return now


POINTS = {
    "share": in_share, "state": at_state, "rename": at_rename, "prune": at_prune,
    "poison": poison, "stall": stall, "record": record, "logits": logits, "collectives": collectives,
    "contrast": share_contrast,
}  # fmt: skip

if __name__ == "__main__":
    main()
