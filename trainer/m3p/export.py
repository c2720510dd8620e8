"""`m3p export`: a run as one folder, compared with the run before it says done.

config.json, model.safetensors, sentencepiece.bpe.model: text encoder and word head, as `transformers` loads an XLM-RoBERTa.
m3p.safetensors, recipe.yaml: the whole network, for `load_exported` and for the `model.weights` of a recipe.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from m3p.batch import Sequence
from m3p.checkpoints.init_from import EXPORTED, start_from
from m3p.data.tokenizer import SENTENCEPIECE_FILE, Tokenizer
from m3p.errors import UserError
from m3p.model.build import build_model, read_encoder_shape
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P
from m3p.packing import Packer
from m3p.recipe.load import dump_recipe, load_recipe
from m3p.recipe.recipe import Recipe
from m3p.retrieval.evaluate import load_run

RECIPE = "recipe.yaml"
LARGEST_DIFFERENCE = 1e-4
"""Between our hidden states and those of the exported model, float32."""


def export_run(run: Path, output: Path) -> str:
    """Write `output` and compare; return a line that says what was found. Raises UserError."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} is not empty; name a new folder")
    recipe, model, step = load_run(run)
    folder = recipe.tokenizer_folder
    tokenizer = Tokenizer(folder)
    shape = read_encoder_shape(recipe.model, tokenizer.size)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    write_folder(output, weights, shape)
    shutil.copyfile(folder / SENTENCEPIECE_FILE, output / SENTENCEPIECE_FILE)
    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, output / EXPORTED)
    (output / RECIPE).write_text(dump_recipe(recipe))
    difference = _compare(model.cpu(), tokenizer, output)
    _compare_whole(model, output)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{output}: its hidden states differ from the run's by {difference:.1e}; do not use it")
    return f"{output}: step {step}, {len(weights)} tensors; hidden states differ from the run's by at most {difference:.1e}"


def load_exported(folder: Path) -> tuple[Recipe, M3P]:
    """Return the recipe of an exported run and its whole network, float32, on the CPU, in evaluation mode. Raises UserError.

    Its model section has the sizes and the vocabulary of `folder`: those that the run was made from may be elsewhere now.
    """
    recipe = load_recipe(folder / RECIPE)
    inside = {"initialise": folder, "tokenizer": folder, "shape": None, "layers": None}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=inside)})
    model = build_model(recipe.model, Tokenizer(folder).size, recipe.visual, recipe.tasks, recipe.run.seed, load=False)
    start_from(model, folder, None)
    return recipe, model.eval()


def _compare_whole(model: M3P, output: Path) -> None:
    """Raise UserError unless every weight comes back as it was."""
    _, loaded = load_exported(output)
    back = dict(loaded.named_parameters())
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, back[name])]
    if changed:
        raise UserError(f"{output / EXPORTED}: {', '.join(changed)} did not come back as written; do not use it")


def _compare(model: M3P, tokenizer: Tokenizer, output: Path) -> float:
    """Return the largest difference of hidden states on random tokens."""
    from transformers import XLMRobertaModel

    length = min(12, model.text.positions.num_embeddings - 2)
    tokens = np.random.default_rng(0).integers(tokenizer.first_piece, tokenizer.mask, length)
    packer = Packer(*model.features)
    packer.add(Sequence(tokens))
    theirs = XLMRobertaModel.from_pretrained(output, add_pooling_layer=False).eval()
    with torch.inference_mode():
        ours, _, _ = model.encode(packer.finish(1))
        other = theirs(torch.from_numpy(tokens)[None]).last_hidden_state[0]
    return float((ours - other).abs().max())
