"""What a run, or a result, is made of: noted beside it, and compared before it is used again.

A grid or an ablation that is started again takes what is there. A run of other data, of other starting weights or of another
version of the code would stand in the table beside the others, and nothing in the table would say so.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

import m3p
from m3p.atomic import write_text
from m3p.checkpoints.files import STATE_FILE, describe, read_state
from m3p.checkpoints.init_from import EXPORTED
from m3p.checkpoints.read import newest_whole
from m3p.checkpoints.resumable import fingerprints
from m3p.checkpoints.selection import opened
from m3p.content_hash import code_hash, hash_bytes
from m3p.data.source import Source
from m3p.errors import UserError
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.recipe import Recipe
from m3p.retrieval.pictures import open_captions, open_source
from m3p.stored_files import read_object
from m3p.training.build_objectives import build_objectives
from m3p.training.deepspeed.config import precision, read_deepspeed_config, resolve

Facts = Mapping[str, str]
"""What something is made of: name -> hash or value."""


def facts_of_run(recipe: Recipe, ds_config: Path | None = None) -> dict[str, str]:
    """Return what a run of `recipe` is made of, beside the recipe: its data, those of its evaluations, its start, the code.

    Of DeepSpeed's settings `ds_config` the precision on this machine counts. A single run may go on in another one; between two
    variants it would be a difference beside the one that is varied. Raises UserError where data are missing or cannot be trained
    on, and for wrong settings.
    """
    found = {f"content of {name}": value for name, value in fingerprints(recipe, build_objectives(recipe)).items()}
    for name, config in recipe.evaluation.items():
        found |= facts_of_evaluation(recipe, name, config)
    for field, path in (("weights", recipe.model.weights), ("initialise", recipe.model.initialise)):
        if path is not None:
            found[f"model.{field}"] = weights_fact(path)
    if ds_config is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = resolve(read_deepspeed_config(ds_config), recipe.optimizer, device)
        found["precision"] = str(precision(settings)).removeprefix("torch.")
    return found | facts_of_code()


def facts_of_code() -> dict[str, str]:
    """Return the hash of the program's own files."""
    return {"code of m3p": code_hash(Path(m3p.__file__).parent)}


def facts_of_evaluation(recipe: Recipe, name: str, config: EvaluationConfig) -> dict[str, str]:
    """Return the hashes of what an evaluation reads. Raises UserError where it is missing."""
    field = f"content of evaluation.{name}"
    found = {f"{field}.path": _source_fact(open_source(recipe, name, config))}
    if config.centre is not None:
        found[f"{field}.centre"] = _source_fact(open_captions(name, config.centre))
    return found


def weights_fact(path: Path) -> str:
    """Return a hash of the weights of a run (its newest whole checkpoint), a checkpoint, an export or a `transformers` folder."""
    path = opened(path)
    if (path / EXPORTED).is_file():
        return describe(path / EXPORTED).sha256[:16]
    checkpoint = path if (path / STATE_FILE).is_file() else newest_whole(path)[0]
    if checkpoint is not None:
        files = read_state(checkpoint).files
        return hash_bytes(repr(sorted((name, entry.sha256) for name, entry in files.items())).encode())
    files_there = sorted((*path.glob("*.safetensors"), *path.glob("*.bin")))
    return hash_bytes(repr([(file.name, describe(file).sha256) for file in files_there]).encode())


def _source_fact(source: Source) -> str:
    """Return a hash of the shards of a source, of captions beside them, and of what its manifest says of the set."""
    manifest = source.manifest
    shards = [(shard.name, shard.samples, shard.fingerprint) for shard in manifest.shards]
    return hash_bytes(repr((shards, manifest.side_captions, manifest.origin)).encode())


def note_of(path: Path) -> Path:
    """Return the file beside `path`, a run folder or a result, that says what it is made of."""
    return path.with_name(f"{path.name}.made-of.json")


def write_note(path: Path, facts: Facts) -> None:
    """Note what `path` is made of."""
    note = note_of(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(dict(facts), indent=1) + "\n", durable=False)


def differences(path: Path, facts: Facts) -> list[str]:
    """Return in what `path` is made of something else than `facts`, a line each. Raises UserError for a note that is damaged."""
    note = note_of(path)
    if not note.exists():
        return [f"what it was made of was not noted: there is no {note.name}"]
    try:
        then = read_object(note)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{note} cannot be read ({error}): put it back, or move it and {path.name} away to make that again"
        ) from error
    missing = "nothing"
    return [
        f"{name}: {then.get(name, missing)} then, {facts.get(name, missing)} now"
        for name in sorted(then.keys() | facts.keys())
        if then.get(name, missing) != facts.get(name, missing)
    ]
