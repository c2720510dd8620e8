"""Ranks agree or do not start: what would make them train something else without a word is compared once, and named.

Rank 1 with another recipe, copy of the data, version of the code or weights would otherwise train along: samples would be met
twice or never, and the checkpoint would tell of rank 0 alone.
"""

import hashlib
import os
import platform
import re
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import m3p
from m3p.checkpoints.files import State
from m3p.checkpoints.resumable import flatten
from m3p.content_hash import code_hash
from m3p.distributed import Ranks, broadcast_object, gather_objects, is_main
from m3p.errors import UserError
from m3p.training.deepspeed.config import read_deepspeed_config

LIBRARIES = (
    "torch", "deepspeed", "transformers", "numpy", "sentencepiece", "tokenizers", "orjson", "pillow", "simplejpeg", "simplemma",
)  # fmt: skip
"""Packages that samples, tokens or gradients pass through."""
SHOWN = 20
"""Differences that a message lists."""
PATIENCE = 10.0
"""Seconds after which a file that rank 0 has made must be seen by all: network file systems keep old listings for a while."""

# Where files lie may differ from node to node: their content is compared.
_PLACES = re.compile(
    r"objectives\.\w+\.sources\.\d+\.path|objectives\.\w+\.switching\.dictionary|model\.(tokenizer|initialise|weights)"
    r"|data\.cache_folder|visual\.folder"
)


def check_agreement(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Compare `facts` (name -> value) over all ranks; every rank calls it. Raises UserError on all where they differ."""
    every: list[Mapping[str, str]] = gather_objects(dict(facts))
    if differences := list(_differences(every)):
        more = f"\n  - and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        lines = "".join(f"\n  - {line}" for line in differences[:SHOWN])
        raise UserError(
            f"the {ranks.world_size} ranks would not train the same run, so none starts:{lines}{more}\n"
            "Start all ranks with one command, from one checkout or installation, on the same data"
        )


def check_shared(folder: Path) -> None:
    """Raise UserError on all ranks unless all see the files that rank 0 makes in `folder`; every rank calls it.

    Each rank writes its share of a checkpoint there: where the folder is another one for some, no checkpoint would be whole.
    """
    name = f".probe.{socket.gethostname()}.{os.getpid()}.partial"
    if is_main():
        (folder / name).touch()
    probe = folder / broadcast_object(name)
    seen = gather_objects(_appears(probe))
    if is_main():
        probe.unlink(missing_ok=True)
    if not all(seen):
        blind = _say([rank for rank, sees in enumerate(seen) if not sees])
        raise UserError(
            f"run.folder: {blind} cannot see what rank 0 writes into {folder.absolute()}, so no checkpoint would be whole; name "
            "a folder that all nodes share, by its full path"
        )


def _appears(path: Path) -> bool:
    """Wait until `path` is there; tell whether it has come in time."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def facts_of_run(state: State, ds_config: Path) -> dict[str, str]:
    """Return what decides the training, before there is a network. Raises UserError: wrong settings of DeepSpeed."""
    recipe = {name: value for name, value in flatten(state.recipe).items() if not _PLACES.fullmatch(name)}
    return {
        **{f"recipe, {name}": str(value) for name, value in recipe.items()},
        **{f"content of {name}": value for name, value in state.data.items()},
        **{f"DeepSpeed setting {k}": str(value) for k, value in flatten(read_deepspeed_config(ds_config)).items()},
        "order of samples, version": str(state.order_version),
        "code of m3p": code_hash(Path(m3p.__file__).parent),
        "Python": platform.python_version(),
        **{f"package {name}": version(name) for name in LIBRARIES},
    }


def facts_of_network(network: nn.Module) -> dict[str, str]:
    """Return what decides the training besides `facts_of_run`: the starting weights."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        digest.update(f"{name} {list(parameter.shape)} {parameter.requires_grad} ".encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"starting weights": digest.hexdigest()[:16]}


def _differences(every: list[Mapping[str, str]]) -> "list[str]":
    """Return a line for each name whose value is not the same on all ranks, given by rank."""
    lines = []
    for name in sorted(set().union(*every)):
        owners: dict[str, list[int]] = {}
        for rank, facts in enumerate(every):
            owners.setdefault(facts.get(name, "not set"), []).append(rank)
        if len(owners) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on {_say(who)}" for value, who in owners.items()))
    return lines


def _say(ranks: list[int]) -> str:
    """Return ranks in words, the first few of many."""
    shown = ", ".join(map(str, ranks[:4]))
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{f' and {len(ranks) - 4} more' if len(ranks) > 4 else ''}"
