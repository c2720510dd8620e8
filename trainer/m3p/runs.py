"""One opened run: its recipe, network and tokenizer, from a run folder, one of its checkpoints, or an exported folder."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from m3p.checkpoints.files import STATE_FILE, State, read_state
from m3p.checkpoints.init_from import EXPORTED, RECIPE, RECORD, start_from
from m3p.checkpoints.read import load_weights, none_whole, read_newest, why_not_whole
from m3p.checkpoints.resumable import (
    check_network,
    check_visual,
    check_vocabulary,
    visual_fingerprints,
    vocabulary_hash,
)
from m3p.checkpoints.selection import opened, selected_on
from m3p.data.tokenizer import Tokenizer, open_tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model
from m3p.model.m3p import M3P
from m3p.recipe.evaluation import EvaluationConfig
from m3p.recipe.load import load_recipe, parse_recipe
from m3p.recipe.recipe import Recipe
from m3p.stored_files import read_bounded
from m3p.unicode_text import is_unicode
from m3p.vocabulary import vocabulary_file


class Record(BaseModel):
    """What is known of trained weights; stands beside every result, and in the folder that `m3p export` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    """Name of the run folder."""
    checkpoint: str
    """Name of the checkpoint's folder."""
    step: int
    """Steps of training that were done."""
    weights: str
    """Hash of the weights, the same in a checkpoint of any number of ranks and in an export of it."""
    captioned_languages: list[str] | None = None
    """Languages whose captions training saw, in the runs that it started from too; None where that was not recorded."""
    vocabulary: dict[str, str] = {}
    """Of an export: the hashes of its vocabulary's files, by name; empty elsewhere, and in exports of earlier versions."""
    selected_on: str | None = None
    """Evaluation whose figure chose this checkpoint among those of its run; None where nothing was chosen."""


@dataclass(frozen=True)
class Run:
    """A run that is opened to be evaluated, searched, exported or used."""

    folder: Path
    """Where what is made of the run goes: the run folder, or the folder that was opened."""
    recipe: Recipe
    record: Record
    model: M3P
    """In evaluation mode, float32, on the GPU if there is one."""
    tokenizer: Tokenizer
    is_newest: bool
    """Whether this is the newest checkpoint of a run folder, so that results need not name their step."""

    @property
    def step(self) -> int:
        """Steps of training that were done."""
        return self.record.step

    @property
    def max_tokens(self) -> int:
        """Tokens that a text is cut to: as in training, by the objective on pictures that allows most."""
        configs = [config for config in self.recipe.active_objectives.values() if config.needs_pictures]
        if not configs:
            raise UserError(f"{self.folder}: no objective of this run trains on pictures, so it scores none")
        return max(config.max_tokens for config in configs)

    def evaluation(self, name: str) -> EvaluationConfig:
        """Return an entry of the recipe's `evaluation` section. Raises UserError where there is none of this name."""
        if name not in self.recipe.evaluation:
            known = ", ".join(self.recipe.evaluation) or "none"
            raise UserError(
                f"{self.folder}: no evaluation {name!r} in its recipe; it has {known}. Or name any --data FOLDER"
            )
        return self.recipe.evaluation[name]


def open_run(path: Path) -> Run:
    """Open a run folder (its newest whole checkpoint), one of its checkpoints, or an exported folder. Raises UserError.

    `checkpoints/best`, which names the checkpoint that a validation figure chose, opens that one.
    """
    if not is_unicode(str(path)):  # the library of the weights opens no such file
        raise UserError(f"{path}: its name is not UTF-8; rename the folder, or copy it to another")
    path = opened(path)
    if (path / EXPORTED).is_file():
        return _open_export(path)
    if (path / STATE_FILE).is_file():
        if problem := why_not_whole(path):
            raise UserError(f"{path} is not whole: {problem}; name another checkpoint, or put a copy back")
        run = path.resolve().parents[1]
        inside = path.resolve().parent.name == "checkpoints" and (run / RECIPE).is_file()
        return _open_checkpoint(path, run if inside else path, run / RECIPE if inside else None, newest=False)
    if not (path / RECIPE).is_file():
        raise none_whole(path, [])
    return read_newest(path, lambda newest: _open_checkpoint(newest, path, path / RECIPE, newest=True))[1]


def _open_checkpoint(path: Path, folder: Path, recipe_file: Path | None, newest: bool) -> Run:
    state = read_state(path)
    recipe = load_recipe(recipe_file) if recipe_file else parse_recipe(dict(state.recipe), str(path / STATE_FILE))
    if recipe_file:
        check_network(path, state, recipe, recipe_file)
    check_vocabulary(path, state, recipe.tokenizer_folder)
    check_visual(path, state, recipe.visual)
    tokenizer = open_tokenizer(recipe.tokenizer_folder)
    model = build_model(recipe.model, tokenizer.size, recipe.visual, recipe.tasks, recipe.run.seed, load=False)
    load_weights(model, path)
    record = _record(folder, path, state, _hash_of(recipe, model))
    return Run(folder, recipe, record, _ready(model), tokenizer, newest)


def _record(folder: Path, checkpoint: Path, state: State, weights: str) -> Record:
    name, step = folder.resolve().name, state.step
    return Record(
        run=name,
        checkpoint=checkpoint.resolve().name,
        step=step,
        weights=weights,
        captioned_languages=state.captioned,
        selected_on=selected_on(checkpoint.resolve()),
    )


def _open_export(folder: Path) -> Run:
    recipe, model = load_exported(folder)
    record = read_record(folder)
    file, now = vocabulary_file(folder), vocabulary_hash(folder)
    if record.vocabulary.get(file.name, now) != now:
        raise UserError(f"{file} is another vocabulary than was exported; put its file back, or export the run again")
    found = _hash_of(recipe, model)
    if record.weights != found:
        raise UserError(
            f"{folder / EXPORTED}: its weights have the hash {found}, and {RECORD} says {record.weights}: the two files are not "
            "of one export; export the run again"
        )
    record = record.model_copy(update={"vocabulary": {}})
    return Run(folder, recipe, record, _ready(model), open_tokenizer(folder), is_newest=True)


def load_exported(folder: Path) -> tuple[Recipe, M3P]:
    """Return the recipe of an exported run and its whole network, float32, on the CPU, in evaluation mode. Raises UserError.

    Its model and visual sections name files of `folder`: those that the run was made from may be elsewhere now.
    """
    recipe = load_recipe(folder / RECIPE)
    inside = {"initialise": folder, "tokenizer": folder, "shape": None, "layers": None}
    visual = recipe.visual if recipe.visual is None else recipe.visual.exported_to(folder)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=inside), "visual": visual})
    size = open_tokenizer(folder).size
    model = build_model(recipe.model, size, recipe.visual, recipe.tasks, recipe.run.seed, load=False)
    start_from(model, folder, None)
    return recipe, model.eval()


def read_record(folder: Path) -> Record:
    """Return the record of an exported folder. Raises UserError where it has none that can be read."""
    try:
        return Record.model_validate_json(read_bounded(folder / RECORD))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / RECORD} cannot be read: export the run again with this version ({error})"
        ) from error


def _hash_of(recipe: Recipe, model: M3P) -> str:
    """Return the hash of a network's weights, and of the files that those come from which stand apart from it."""
    apart = recipe.visual is not None and recipe.visual.frozen_parameters > 0
    told = visual_fingerprints(recipe.visual) if recipe.visual is not None and apart else {}
    return weights_hash(dict(model.named_parameters()), told)


def weights_hash(weights: Mapping[str, Tensor], others: Mapping[str, str] | None = None) -> str:
    """Return a hash of names, shapes and float32 values, whatever the order and the device; and of `others`, name -> hash."""
    digest = hashlib.sha256()
    for name, value in sorted((others or {}).items()):
        digest.update(f"{name} {value}\n".encode())
    for part in _parts(weights):
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(weights: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    for name, tensor in sorted(weights.items()):
        yield f"{name} {list(tensor.shape)}\n".encode()
        yield tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy().data.cast("B")


def _ready(model: M3P) -> M3P:
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
