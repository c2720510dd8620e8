"""Steps of the code as it was at the commit of `host_before.py`, which starts this process: one for each line on stdin.

    python benchmarks/host_before_step.py TREE INPUT

TREE is a folder with the `trainer` package of that commit, INPUT what `host_before.py` saved: its setting and micro-batches. Each
answer is a line on stdout: [processor seconds, loss].
"""

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

TEXT = {"masked_words": 1.0}
PAIRS = {"masked_words": 1.0, "masked_regions": 1.0, "matching": 1.0, "contrastive": 1.0}
LATER_FIELDS = ("embedded_rows", "hard")
"""Fields of today's micro-batches that had another name, or were not there."""
LATER_TARGETS = ("contents", "published", "least")
"""Tensors that tasks have come to look at since."""


def main() -> None:
    """Answer each line with a step."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what DeepSpeed prints is no answer
    _, tree, stored = sys.argv
    sys.path.insert(0, tree)
    given = torch.load(stored)
    engine, batches = build(given["setting"]), [make_batch(one) for one in given["batches"]]
    torch.set_num_threads(1)
    gc.freeze()
    gc.disable()
    for _ in sys.stdin:
        began = time.process_time()
        loss = take_step(engine, batches)
        print(json.dumps([time.process_time() - began, loss]), file=answers, flush=True)
    os._exit(0)


def make_batch(content: dict[str, Any]) -> Any:
    """Return a micro-batch in the earlier form."""
    targets = {
        task: {name: tensor for name, tensor in of.items() if name not in LATER_TARGETS}
        for task, of in content["targets"].items()
    }
    same = {name: value for name, value in content.items() if name not in LATER_FIELDS}
    return import_module("trainer.batch").Batch(**{**same, "targets": targets, "held": content["embedded_rows"]})


def build(setting: dict[str, Any]) -> Any:
    """Return the earlier engine over the network that `host.build` makes of the same `setting`."""
    ranks = import_module("trainer.training.distributed").start(600)
    visual = import_module("trainer.visual.regions").Regions(**setting["visual"])
    shape = import_module("trainer.model.encoder").EncoderShape(**setting["shape"])
    config = import_module("trainer.model.config").ModelConfig(shape=shape, tokenizer=Path("unused"), dropout=0.0)
    model = import_module("trainer.model.build").build_model(config, setting["words"], visual, list(PAIRS), seed=0)
    optimizer = import_module("trainer.training.optimizer").OptimizerConfig(learning_rate=1e-9)
    kernels = import_module("trainer.kernels.choice").KernelsConfig()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "zero1.json"
        file.write_text(json.dumps(setting["deepspeed"]))
        engine = import_module("trainer.training.engine").Engine(model, optimizer, kernels, file, ranks, 3)
    engine.deepspeed.train()
    return engine


def take_step(engine: Any, batches: Sequence[Any]) -> float:
    """Take a step of three turns; return the sum of the mean losses."""
    losses, means = import_module("trainer.training.engine").Losses(), dict[str, float]()

    def allow() -> bool:
        means.update(losses.means())
        return True

    for name, weights, batch in zip(("text", "pairs", "pairs"), (TEXT, PAIRS, PAIRS), batches, strict=True):
        engine.turn(name, weights, [batch], allow if batch is batches[-1] else None, losses)
    assert engine.step(0.0)[2], "no update was made"
    return sum(means.values())


if __name__ == "__main__":
    main()
