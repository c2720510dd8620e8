"""A baseline that any trained model has to be read beside: closed-form ridge regression, no training at all.

A picture's mean region vector is mapped linearly to where a frozen multilingual encoder puts its English caption
(mean-pooled); queries of every language meet it there by cosine. Zero-shot transfer is then the encoder's own gift.

    python benchmarks/ridge.py --data FOLDER --encoder FOLDER [--tower FOLDER] --languages en,de [--json FILE] [--save FILE]

FOLDER of data holds the raw form: train.jsonl, dev.jsonl ({"id", "captions"}) and regions/ID.npz with `features` [R, D]; with
--tower, the regions are the cells of that vision tower's grid instead, of the pictures ({"image"}).
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor
from tower_regions import grids
from transformers import XLMRobertaModel

from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.retrieval.comparison import compare
from m3p.retrieval.metrics import QueryRanks, rank_both_ways
from m3p.retrieval.pool import Pool
from m3p.retrieval.result import Conditions, Evaluation
from m3p.retrieval.table import print_table

BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # XLM-R's ids; every other piece is its sentencepiece id + 1
LONGEST = 512
RIDGE = 1.0

Array = NDArray[np.float64]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read one JSON record a line. Raises UserError for an absent file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; --data takes a folder with train.jsonl, dev.jsonl and regions/")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def unit(vectors: Array) -> Array:
    """Return the vectors [..., D] scaled to length 1."""
    length: Array = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)


def region_means(folder: Path, records: Sequence[dict[str, Any]], tower: Path | None) -> Array:
    """Return the mean of each picture's L2-normalised region features, or cells of the tower: float64 [N, D]."""
    if tower is not None:
        cells = grids(tower, [folder / record["image"] for record in records])
        return np.stack([unit(grid.astype(np.float64)).mean(axis=0) for grid in cells])
    means = []
    for record in records:
        path = folder / "regions" / f"{record['id']}.npz"
        if not path.exists():
            raise UserError(f"{path}: no such file; every record needs its region features, prepare them first")
        with np.load(path, allow_pickle=False) as arrays:
            means.append(unit(arrays["features"].astype(np.float64)).mean(axis=0))
    return np.stack(means)


class FrozenEncoder:
    """A `transformers` XLM-RoBERTa folder as it is: text to the mean of its last hidden states."""

    def __init__(self, folder: Path) -> None:
        pieces = folder / "sentencepiece.bpe.model"
        if not pieces.exists():
            raise UserError(f"{pieces}: no such file; --encoder takes a folder with config.json, weights and this file")
        self.pieces = SentencePieceProcessor(model_file=str(pieces))
        self.model = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch: int = 64) -> Array:
        """Return the mean-pooled states of `texts`, `<s>` and `</s>` included: float64 [len(texts), hidden]."""
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # like lengths together: little padding
        result = np.empty((len(ids), self.model.config.hidden_size))
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows = [torch.tensor(ids[place]) for place in places]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            mask = (tokens != PAD).long()
            states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            result[places] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        return result

    def _ids(self, text: str) -> list[int]:
        pieces = [piece + 1 if piece else UNKNOWN for piece in self.pieces.encode(text)]
        return [BOS, *pieces[: LONGEST - 2], EOS]


def fit(pictures: Array, captions: Array) -> tuple[Array, Array, Array]:
    """Fit unit(pictures - mean) [M, D] -> unit(captions) - mean [M, H] by ridge; return the two means and the weights.

    Both sides are centred because mean-pooled states share one large direction, which would swamp the cosine.
    """
    targets = unit(captions)
    picture_mean, caption_mean = pictures.mean(axis=0), targets.mean(axis=0)
    x = unit(pictures - picture_mean)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (targets - caption_mean))
    return picture_mean, caption_mean, weights


def evaluate(arguments: argparse.Namespace) -> Evaluation:
    """Fit on the English captions of train and evaluate on dev, in every language asked for."""
    encoder = FrozenEncoder(arguments.encoder)
    train, dev = (read_records(arguments.data / f"{split}.jsonl") for split in ("train", "dev"))
    pool = Pool.of(dev, arguments.languages or sorted({code for record in dev for code in record["captions"]}))
    pairs = [(place, text) for place, record in enumerate(train) for text in texts_of(record, "en")]
    if not pairs:
        raise UserError(f"{arguments.data / 'train.jsonl'}: no record has a caption in 'en', which ridge is fitted on")
    places, texts = zip(*pairs, strict=True)
    train_pictures = region_means(arguments.data, train, arguments.tower)[list(places)]
    picture_mean, caption_mean, weights = fit(train_pictures, encoder.embed(texts))
    pictures = unit(unit(region_means(arguments.data, dev, arguments.tower) - picture_mean) @ weights)
    found: dict[str, QueryRanks] = {}
    for language, captions in pool.captions.items():
        queries = unit(encoder.embed([caption.text for caption in captions]))
        centre = queries.mean(axis=0) if arguments.centring == "language" else caption_mean
        found[language] = rank_both_ways(pictures @ unit(queries - centre).T, pool.right(language))
    conditions = Conditions(
        dataset=arguments.data.name,
        split="dev",
        scoring="dual",
        caption_source="those of the data",
        system="ridge" if arguments.centring == "language" else "ridge, English centre",
        captioned_languages=["en"],
        selection_split="dev",  # centring and normalisation were chosen there
    )
    return Evaluation.of(pool, found, conditions)


def texts_of(record: dict[str, Any], language: str) -> list[str]:
    """Return the captions of a record in a language: one text, several, or none."""
    texts = record["captions"].get(language, [])
    return [texts] if isinstance(texts, str) else list(texts)


def results(evaluation: Evaluation, model: Evaluation | None, seconds: float) -> dict[str, Any]:
    """Return what --json writes; a ratio is the model's mean recall over the ridge baseline's."""
    shown = {"text_to_image", "image_to_text", "mean_recall", "interval", "chance", "captions"}
    rows = [{"language": name, **result.model_dump(include=shown)} for name, result in evaluation.languages.items()]
    theirs = {name: result.mean_recall for name, result in evaluation.languages.items()}
    ours = {} if model is None else {name: result.mean_recall for name, result in model.languages.items()}
    ratios = {name: ours[name] / theirs[name] for name in ours if theirs.get(name)}
    return {"machine": machine(), "seconds": round(seconds, 1), "rows": rows, "ratios": ratios}


def main() -> None:
    """Run the baseline and print its table; compare a model's evaluation with it where one is given."""
    parser = argparse.ArgumentParser(description="Closed-form ridge baseline of multilingual image retrieval.")
    parser.add_argument("--data", type=Path, required=True, help="raw records: train.jsonl, dev.jsonl, regions/")
    parser.add_argument("--encoder", type=Path, required=True, help="local transformers XLM-RoBERTa folder")
    parser.add_argument("--tower", type=Path, help="local transformers folder of a vision model, in place of regions/")
    parser.add_argument(
        "--languages",
        type=lambda text: [] if text == "all" else text.split(","),
        default=["en"],
        help="by commas, or all",
    )
    parser.add_argument(
        "--centring",
        choices=["language", "english"],
        default="language",
        help="subtract from queries the mean of all queries of their language, or that of the English train captions",
    )
    parser.add_argument("--model", type=Path, help="evaluation/NAME.json of a run, compared with the baseline in pairs")
    parser.add_argument("--save", type=Path, help="store the evaluation in the form of evaluation/NAME.json")
    parser.add_argument("--json", type=Path, help="store machine, rows and ratios")
    arguments = parser.parse_args()
    model = Evaluation.load(arguments.model) if arguments.model else None
    start = time.perf_counter()
    evaluation = evaluate(arguments)
    seconds = time.perf_counter() - start
    console = PlainConsole()
    print_table(evaluation, console)
    console.print(f"{seconds:.1f} s on {machine()}")
    if arguments.save:
        evaluation.save(arguments.save)
    if model is not None:
        console.print(compare(model, evaluation))
    if arguments.json:
        text = json.dumps(results(evaluation, model, seconds), indent=2, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
