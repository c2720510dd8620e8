"""`m3p export`: a run as one folder, compared with the run before it says done.

config.json, model.safetensors, sentencepiece.bpe.model: text encoder and word head, as `transformers` loads an XLM-RoBERTa.
m3p.safetensors, recipe.yaml, m3p.json: the whole network and its record, for `open_run` and for the `model.weights` of a recipe.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from m3p.batch import Sequence
from m3p.checkpoints.init_from import EXPORTED, RECORD
from m3p.data.tokenizer import SENTENCEPIECE_FILE, Tokenizer
from m3p.errors import UserError
from m3p.model.build import read_encoder_shape
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P
from m3p.packing import Packer
from m3p.recipe.load import dump_recipe
from m3p.runs import RECIPE, load_exported, open_run

LARGEST_DIFFERENCE = 1e-4
"""Between our hidden states and those of the exported model, float32."""


def export_run(run: Path, output: Path) -> str:
    """Write `output` and compare; return a line that says what was found. Raises UserError."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} is not empty; name a new folder")
    opened = open_run(run)
    recipe, model, tokenizer = opened.recipe, opened.model, opened.tokenizer
    folder = recipe.tokenizer_folder
    shape = read_encoder_shape(recipe.model, tokenizer.size)
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    write_folder(output, weights, shape)
    shutil.copyfile(folder / SENTENCEPIECE_FILE, output / SENTENCEPIECE_FILE)
    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, output / EXPORTED)
    (output / RECIPE).write_text(dump_recipe(recipe))
    (output / RECORD).write_text(opened.record.model_dump_json(indent=1) + "\n")
    difference = _compare(model.cpu(), tokenizer, output)
    _compare_whole(model, output)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{output}: its hidden states differ from the run's by {difference:.1e}; do not use it")
    done = f"{output}: step {opened.step}, {len(weights)} tensors"
    return f"{done}; hidden states differ from the run's by at most {difference:.1e}"


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
