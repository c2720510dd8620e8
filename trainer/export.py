"""`m3p export`: a run's text encoder and word head for `transformers`, compared with our own network before it says done."""

import shutil
from pathlib import Path

import numpy as np
import torch

from trainer.batch import Packer, Sequence
from trainer.data.tokenizer import FILE_NAME, Tokenizer
from trainer.errors import UserError
from trainer.model.build import read_encoder_shape
from trainer.model.huggingface import write_folder
from trainer.model.m3p import M3P
from trainer.retrieval.evaluate import load_run

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
    shutil.copyfile(folder / FILE_NAME, output / FILE_NAME)
    difference = _compare(model.cpu(), tokenizer, output)
    if difference > LARGEST_DIFFERENCE:
        raise UserError(f"{output}: its hidden states differ from the run's by {difference:.1e}; do not use it")
    return f"{output}: step {step}, {len(weights)} tensors; hidden states differ from the run's by at most {difference:.1e}"


def _compare(model: M3P, tokenizer: Tokenizer, output: Path) -> float:
    """Return the largest difference of hidden states on random tokens."""
    from transformers import XLMRobertaModel

    tokens = np.random.default_rng(0).integers(tokenizer.first_piece, tokenizer.mask, 12)
    packer = Packer(model.visual_size)
    packer.add(Sequence(tokens))
    theirs = XLMRobertaModel.from_pretrained(output, add_pooling_layer=False).eval()
    with torch.inference_mode():
        ours, _, _ = model.encode(packer.finish(1))
        other = theirs(torch.from_numpy(tokens)[None]).last_hidden_state[0]
    return float((ours - other).abs().max())
