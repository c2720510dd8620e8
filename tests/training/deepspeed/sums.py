"""One rank of test_gradient_sums.py and test_owner_sums.py: takes the gradient of one batch in every case, and writes what this
rank holds of it.

`sums.py FOLDER CASES` with a launcher's variables; CASES is JSON: {name: {"settings", "samples", "micro_batch"}}, and in a case
"min_part" where it has a `config.MIN_PART` of its own, and
"refused" where a step that makes no update comes first. The gradient is read from the first moment after one step:
(1 - beta1) times the gradient, float32. `sent-RANK.json` tells how many numbers went into each kind of sum over ranks, in that
step.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Else the folder of this file would come before the library.
sys.path[0] = str(Path(__file__).parents[3])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from m3p import distributed  # noqa: E402
from m3p.batch import Batch, Sequence  # noqa: E402
from m3p.checkpoints import files  # noqa: E402
from m3p.data.order.passes import PassPlan  # noqa: E402
from m3p.data.order.plan import Turn  # noqa: E402
from m3p.distributed import Ranks  # noqa: E402
from m3p.kernels.choice import KernelsConfig  # noqa: E402
from m3p.model.build import build_model  # noqa: E402
from m3p.model.config import ModelConfig  # noqa: E402
from m3p.objectives.tasks import TASKS  # noqa: E402
from m3p.objectives.tasks.masked_words import ask_words  # noqa: E402
from m3p.optim.optimizer import OptimizerConfig  # noqa: E402
from m3p.packing import Packer  # noqa: E402
from m3p.training.deepspeed import owner_sums  # noqa: E402
from m3p.training.deepspeed.config import MIN_PART  # noqa: E402
from m3p.training.deepspeed.engine import DeepSpeedEngine  # noqa: E402
from m3p.training.losses import StepLosses  # noqa: E402
from m3p.training.turns import Exchange  # noqa: E402

SHAPE = {"layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "positions": 20}
WORDS = 30
OPTIMIZER = OptimizerConfig(learning_rate=1e-9, beta1=0.9, clip=0)


def pack(seeds: list[int]) -> Batch:
    """Pack a micro-batch: a sentence for each seed, with two words asked for."""
    packer = Packer(1)
    for seed in seeds:
        words = np.random.default_rng(seed).integers(4, WORDS, 8)
        _, first = packer.add(Sequence(words))
        ask_words(packer, first + np.array([1, 5]), words[[1, 5]])
    return packer.finish(len(seeds))


@contextmanager
def counting(file: Path) -> Iterator[None]:
    """Write into `file` how many numbers went through each kind of sum over ranks inside the block."""
    sent, real = Counter[str](), {name: getattr(torch.distributed, name) for name in ("reduce", "all_reduce")}

    def counted(name: str) -> Any:
        def call(tensor: Tensor, *others: Any, **named: Any) -> Any:
            sent[name] += tensor.numel()
            return real[name](tensor, *others, **named)

        return call

    for name in real:
        setattr(torch.distributed, name, counted(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(torch.distributed, name, function)
        file.write_text(json.dumps(sent))


def gradient(
    folder: Path,
    ranks: Ranks,
    settings: dict[str, Any],
    samples: list[int],
    micro_batch: int,
    min_part: int = MIN_PART,
    refused: bool = False,
) -> None:
    """Take one step, after one that is refused if the case says so, and write this rank's share of the gradient into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vars(owner_sums)["MIN_PART"] = min_part
    ds_config = folder / f"ds-{ranks.rank}.json"
    ds_config.write_text(json.dumps(settings))
    config = ModelConfig.model_validate({"shape": SHAPE, "tokenizer": "t", "dropout": 0.0})
    model = build_model(config, WORDS, None, [TASKS["masked_words"]], seed=0)
    engine = DeepSpeedEngine(model, OPTIMIZER, KernelsConfig(), ds_config, ranks, 1, 60)
    engine.train_mode()
    mine = samples[ranks.rank :: ranks.world_size]
    batches = [pack(mine[first : first + micro_batch]) for first in range(0, len(mine), micro_batch)]
    plan = PassPlan(1, [Turn(0, "text", 0, range(len(samples)))], last=True)
    data = Exchange({"text": {"masked_words": 1.0}}, {"text": len(batches)}).take(plan, iter(batches))
    if refused:
        losses = StepLosses()
        engine.turns(data.turns, losses, data.last)
        assert not engine.step(0.0, losses, 0.0).made
    losses = StepLosses()
    with counting(folder / f"sent-{ranks.rank}.json"):
        engine.turns(data.turns, losses, data.last)
        assert engine.step(0.0, losses, None).made
    tensors, pieces = {}, {}
    for fragment in engine.fragments():
        if len(fragment.saved):
            tensors[f"gradient/{fragment.name}"] = fragment.copy()["exp_avg"] / (1 - OPTIMIZER.beta1)
            pieces[fragment.name] = (fragment.saved.start, fragment.shape)
    files.write_share(folder / files.share_name(ranks.rank), tensors, pieces)


def main() -> None:
    """Take every case in this one process: starting takes longest."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = distributed.start(60)
    torch.set_num_threads(1)
    for name, case in cases.items():
        gradient(folder / name, ranks, **case)
    distributed.finish()
    distributed.leave(0)


if __name__ == "__main__":
    main()
