"""Whether an exported folder says in other libraries what the run says here: token ids, hidden states, embeddings of texts."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from m3p.batch import Sequence
from m3p.data.pieces import SentencePiece
from m3p.data.records import Members, choose_captions, passage, read_record
from m3p.data.source import Source, SourceConfig, find_folders
from m3p.data.storage.folders import is_url
from m3p.data.tokenizer import Tokenizer
from m3p.errors import BadSample, UserError
from m3p.model.m3p import M3P
from m3p.packing import Packer
from m3p.recipe.recipe import Recipe
from m3p.retrieval.scoring import scorer_of
from m3p.runs import Run
from m3p.sample_texts import sample_texts
from m3p.vocabulary import MASK, SPECIALS
from m3p.wordpiece import BERT_MASK, BERT_SPECIALS

LARGEST_DIFFERENCE = 1e-4
"""Between our hidden states or embeddings and those of the exported model, float32."""
TEXTS_OF_LANGUAGE = 50
"""Texts of each language of each source that are compared."""
SAMPLES_READ = 2000
"""Samples of a source in which its languages are looked for."""
TIE = 1e-5
"""Two cuts of a text whose scores differ by less than this share are alike to float32."""

_TYPED = re.compile("|".join([*map(re.escape, [*SPECIALS, MASK, *BERT_SPECIALS, BERT_MASK]), "<0x[0-9A-F]{2}>"]))
_WRITTEN_APART = re.compile("[\u1100-\u11ff\u3130-\u318f\uff9e-\uffdc]")
"""Jamo, halfwidth jamo and voicing marks; besides them all that Unicode calls marks."""


@dataclass
class Texts:
    """Texts to compare, by where they are from."""

    found: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Sources that are not on this machine."""

    def __iter__(self) -> Iterator[str]:
        """Yield every text."""
        return (text for texts in self.found.values() for text in texts)


def find_texts(recipe: Recipe) -> Texts:
    """Return texts of every language of the run's training data and evaluations that is here, and texts in many scripts."""
    texts = Texts({"many scripts": sample_texts()})
    for name, config in recipe.active_objectives.items():
        for number, source in enumerate(config.sources):
            field_name = f"objectives.{name}.sources.{number}.path"
            _add(texts, recipe, field_name, source.path, config.needs_pictures)
    for name, evaluation in recipe.evaluation.items():
        _add(texts, recipe, f"evaluation.{name}.path", evaluation.path, True)
    return texts


def _add(texts: Texts, recipe: Recipe, name: str, pattern: str, pictures: bool) -> None:
    try:
        if is_url(pattern):
            raise UserError(f"{name} = {pattern}: is not on this machine")
        load = recipe.visual.load if pictures and recipe.visual else None
        folders = [
            Source(Path(path), SourceConfig(path=path), (0, name, 0), 1, load) for path in find_folders(pattern, name)
        ]
    except UserError:
        texts.missing.append(name)
        return
    for source in folders:
        counts: Counter[str] = Counter()
        for language, text in islice(_read(source), SAMPLES_READ):
            counts[language] += 1
            if counts[language] <= TEXTS_OF_LANGUAGE:
                texts.found.setdefault(language, []).append(text)


def _read(source: Source) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of a source's samples, in the order of its shards, without the unusable ones."""
    for shard, entry in enumerate(source.manifest.shards):
        for number in range(entry.samples):
            try:
                members = source.members(shard, number)
                if source.manifest.kind == "text":
                    yield source.manifest.language or "", passage(members.get("txt"))
                else:
                    for language, captions in _captions(source, members).items():
                        yield from ((language, caption) for caption in captions)
            except BadSample:
                continue


def _captions(source: Source, members: Members) -> dict[str, list[str]]:
    """Return the captions of a pair. Raises BadSample."""
    return choose_captions(read_record(members, source.manifest.language).captions, None)


@dataclass
class Agreement:
    """How a comparison of token ids ended."""

    alike: int = 0
    typed: int = 0
    """Texts with a special piece's name in them, which are not compared."""
    apart: int = 0
    """Texts with letters and marks that are composed differently."""
    tied: int = 0
    """Texts with two cuts of equal score."""

    def __str__(self) -> str:
        said = [f"AutoTokenizer cuts {self.alike:,} texts as the run does"]
        said += [f"{self.apart:,} with marks written apart otherwise"] if self.apart else []
        said += [f"{self.tied:,} to pieces of equal score"] if self.tied else []
        said += [f"{self.typed:,} that spell special tokens are not compared"] if self.typed else []
        return ", ".join(said)


def compare_tokens(tokenizer: Tokenizer, folder: Path, texts: Iterable[str], max_tokens: int) -> Agreement:
    """Compare token ids with those of AutoTokenizer in `folder`, whole and cut to `max_tokens`.

    Differences that data/tokenizer_json.py explains are counted. Raises UserError that names the text for any other.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    if len(theirs) != tokenizer.size or theirs.mask_token_id != tokenizer.mask or theirs.model_max_length != max_tokens:
        raise UserError(
            f"{folder}: AutoTokenizer has {len(theirs)} pieces, the mask {theirs.mask_token_id} and at most "
            f"{theirs.model_max_length} tokens there, want {tokenizer.size}, {tokenizer.mask} and {max_tokens}; nothing was "
            "written"
        )
    texts = list(texts)
    found = Agreement()
    long = [" ".join(texts[start:]) for start in range(0, len(texts), max(1, len(texts) // 4))]
    for text in [*texts, *(text for text in long if len(text) < 1 << 20)]:
        ours, other = tokenizer.encode(text, 1 << 30).tolist(), theirs(text, verbose=False)["input_ids"]
        if _TYPED.search(text):
            found.typed += 1
        elif ours == other:
            cut = tokenizer.encode(text, max_tokens).tolist()
            _check_same(folder, text, cut, theirs(text, truncation=True)["input_ids"])
            found.alike += 1
        elif _is_apart(tokenizer, theirs, text):
            found.apart += 1
        elif _is_tied(tokenizer, ours, other):
            found.tied += 1
        else:
            _check_same(folder, text, ours, other)
    return found


def _check_same(folder: Path, text: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        raise UserError(
            f"{folder}: AutoTokenizer cuts {text[:200]!r} to {theirs[:200]}, the run's tokenizer to {ours[:200]}; nothing "
            "was written"
        )


def _is_apart(tokenizer: Tokenizer, theirs: Any, text: str) -> bool:
    """Tell whether normalisation differs in a text with marks."""
    own = tokenizer.pieces
    if not isinstance(own, SentencePiece):
        return False
    marks = _WRITTEN_APART.search(text) or any(unicodedata.category(letter).startswith("M") for letter in text)
    return bool(marks) and own.model.normalize(text) != theirs.backend_tokenizer.normalizer.normalize_str(text)


def _is_tied(tokenizer: Tokenizer, ours: list[int], theirs: list[int]) -> bool:
    """Tell whether two cuts spell the same, with the same score up to the rounding of float32."""
    own = tokenizer.pieces
    if not isinstance(own, SentencePiece) or not own.is_unigram():
        return False
    spelled = ["".join(map(tokenizer.piece, ids)) for ids in (ours, theirs)]
    scores = [sum(own.model.get_score(token - 1) for token in ids[1:-1] if token > 3) for ids in (ours, theirs)]
    return spelled[0] == spelled[1] and abs(scores[0] - scores[1]) <= TIE * abs(scores[0])


def compare_hidden_states(model: M3P, tokenizer: Tokenizer, folder: Path, texts: Texts) -> float:
    """Return the largest difference of hidden states on texts of every language, and on one of full length."""
    from transformers import AutoModel

    max_tokens = model.text.positions.num_embeddings - 2
    chosen = [text for found in texts.found.values() for text in found[:2]] + [" ".join(islice(texts, 200))]
    theirs = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return max(_difference(model, theirs, tokenizer.encode(text, max_tokens)) for text in chosen)


def _difference(model: M3P, theirs: Any, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    packer = Packer(*model.features)
    packer.add(Sequence(tokens))
    with torch.inference_mode():
        ours, _, _ = model.encode(packer.finish(1))
        other: Tensor = theirs(torch.from_numpy(tokens)[None]).last_hidden_state[0]
    return float((ours - other).abs().max())


def compare_embeddings(opened: Run, folder: Path, texts: Texts) -> tuple[float, str]:
    """Return the largest difference of text embeddings from those of the exported modules, and who computed these.

    It is the package `sentence-transformers` where it is installed, else the same modules in plain torch.
    Texts that AutoTokenizer cuts otherwise are left out here; `compare_tokens` judges them.
    """
    from transformers import AutoTokenizer

    limit = opened.max_tokens
    chosen = [text for found in texts.found.values() for text in found[:4]] + [" ".join(islice(texts, 200))]
    auto = AutoTokenizer.from_pretrained(folder)
    cut = [auto(text, truncation=True, max_length=limit)["input_ids"] for text in chosen]
    alike = [n for n, text in enumerate(chosen) if opened.tokenizer.encode(text, limit).tolist() == cut[n]]
    ours = scorer_of(opened).embed_texts([chosen[n] for n in alike])
    if find_spec("sentence_transformers") is None:
        return float(np.abs(ours - _embed(folder, [cut[n] for n in alike])).max()), "its modules in plain torch"
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    other = np.asarray(theirs.encode([chosen[n] for n in alike], show_progress_bar=False))
    return float(np.abs(ours - other).max()), "sentence-transformers"


def _embed(folder: Path, sequences: list[list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Compute encoder, pooling, scaling, projection and unit length as the files of `folder` say: -> [N, projection]."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    first = json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]
    scales = (folder / "2_Normalize").is_dir()
    dense = load_file(folder / ("3_Dense" if scales else "2_Dense") / "model.safetensors")
    rows = []
    with torch.inference_mode():
        for tokens in sequences:
            hidden = encoder(torch.tensor([tokens])).last_hidden_state[0]
            pooled = hidden[0] if first else hidden.mean(0)
            pooled = F.normalize(pooled, dim=-1) if scales else pooled
            rows.append(F.normalize(F.linear(pooled, dense["linear.weight"], dense.get("linear.bias")), dim=-1))
    return torch.stack(rows).numpy()
