"""`m3p export`: a run as one folder that other libraries read, compared with the run before it says done.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json: text encoder, word head and tokenizer as `transformers`
loads an XLM-RoBERTa. modules.json and its folders, if asked for: text embeddings as `sentence-transformers` computes them.
vision_tower/: the run's vision tower as `transformers` loads it, where it has one.
m3p.safetensors, recipe.yaml, m3p.json: the whole network and its record, for `open_run` and for the `model.weights` of a recipe.
"""

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from m3p.checkpoints.init_from import EXPORTED, RECIPE, RECORD
from m3p.checkpoints.seen_pictures import copy_seen
from m3p.content_hash import hash_bytes
from m3p.errors import UserError
from m3p.export_check import (
    LARGEST_DIFFERENCE,
    compare_embeddings,
    compare_hidden_states,
    compare_tokens,
    find_texts,
)
from m3p.export_files import open_to_group, write_sentence_transformers, write_tokenizer
from m3p.model.build import read_encoder_shape
from m3p.model.heads import EmbeddingHead
from m3p.model.huggingface import write_folder
from m3p.model.m3p import M3P
from m3p.objectives.tasks import TASKS
from m3p.prepare.staging import staged_folder
from m3p.quiet import quiet
from m3p.recipe.load import dump_recipe
from m3p.runs import Run, load_exported, open_run
from m3p.terminal import warn
from m3p.vocabulary import SENTENCEPIECE_FILE, TOKENIZER_FILE

Format = Literal["transformers", "sentence-transformers"]


def export_run(run: Path, output: Path, format: Format = "transformers") -> str:
    """Write `output`, whole or not at all, and compare; return a line that says what was found. Raises UserError.

    `sentence-transformers` adds its modules, for a run that trains an embedding of texts.
    """
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output} is not empty; name a new folder")
    opened = open_run(run)
    head = _embedding_head(opened) if format == "sentence-transformers" else None
    with staged_folder(output, RECORD, overwrite=False) as staged:
        try:
            said = _export(opened, head, staged)
        except UserError as error:  # which names the folder that goes away
            raise UserError(str(error).replace(str(staged), str(output))) from error
    return f"{output}: step {opened.step}; " + "; ".join(said)


def _export(opened: Run, head: EmbeddingHead | None, output: Path) -> list[str]:
    """Write the folder and compare it; return what was compared. Raises UserError where anything differs."""
    _write(opened, output)
    if head is not None:
        write_sentence_transformers(head, opened.max_tokens, output)
    open_to_group(output)
    opened.model.cpu()
    _compare_whole(opened.model, output)
    with quiet():
        return _compare(opened, output, head is not None)


def _embedding_head(opened: Run) -> EmbeddingHead:
    """Return the head that projects texts. Raises UserError where the run does not train one."""
    head = next((head for head in opened.model.heads.values() if isinstance(head, EmbeddingHead)), None)
    if head is None:
        fields = " or ".join(f"tasks.{task.name}" for task in TASKS.values() if task.embeds)
        raise UserError(
            f"--format sentence-transformers: {opened.folder} trains no task that embeds texts alone; use --format transformers, "
            f"or give {fields} a weight"
        )
    return head


def _write(opened: Run, output: Path) -> None:
    model, recipe = opened.model, opened.recipe
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    write_folder(output, weights, read_encoder_shape(recipe.model, opened.tokenizer.size))
    write_tokenizer(opened.tokenizer, _positions(model), output)
    save_file({name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}, output / EXPORTED)
    if recipe.visual is not None and model.visual is not None:
        recipe.visual.export(model.visual, output)
    (output / RECIPE).write_text(dump_recipe(recipe))
    copy_seen(opened.folder, output)
    vocabulary = [path for name in (SENTENCEPIECE_FILE, TOKENIZER_FILE) if (path := output / name).is_file()]
    hashes = {path.name: hash_bytes(path.read_bytes()) for path in vocabulary}
    record = opened.record.model_copy(update={"vocabulary": hashes})
    (output / RECORD).write_text(record.model_dump_json(indent=1) + "\n")


def _positions(model: M3P) -> int:
    """Return how many tokens a text may have: XLM-R's first two positions are nobody's."""
    return model.text.positions.num_embeddings - 2


def _compare(opened: Run, output: Path, embeds: bool) -> list[str]:
    """Return what was compared and how it ended. Raises UserError where anything differs."""
    texts = find_texts(opened.recipe)
    if texts.missing:
        warn(f"{', '.join(texts.missing)}: not on this machine, so none of its texts is compared")
    said = [str(compare_tokens(opened.tokenizer, output, texts, _positions(opened.model)))]
    found = {"hidden states": (compare_hidden_states(opened.model, opened.tokenizer, output, texts), "transformers")}
    if embeds:
        found["embeddings"] = compare_embeddings(opened, output, texts)
    for name, (difference, theirs) in found.items():
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{output}: its {name} differ from the run's by {difference:.1e} in {theirs}; nothing was written"
            )
        said.append(f"{name} differ from the run's by at most {difference:.1e} in {theirs}")
    return said


def _compare_whole(model: M3P, output: Path) -> None:
    """Raise UserError unless every weight comes back as it was."""
    _, loaded = load_exported(output)
    back = dict(loaded.named_parameters())
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, back[name])]
    if changed:
        raise UserError(f"{output / EXPORTED}: {', '.join(changed)} did not come back as written; nothing was written")
