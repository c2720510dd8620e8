"""Scoring of a large pool: time, peak memory and pairs a second, and whether a killed scoring goes on to the same numbers.

    python benchmarks/scoring.py FOLDER [--pictures 5000 --captions 5 --regions 100 --features 2048 --shortlist 2] [--json FILE]
    python benchmarks/scoring.py --run RUN --evaluation NAME --shortlist K [--dual-weight W --languages en]

The first makes pictures and captions out of nothing in FOLDER and scores them with a tiny network: by the dual encoder, then with
a shortlist that the cross-encoder scores again, once in one go and once killed half way. The second sets shortlist + re-ranking
of a trained run beside the exhaustive cross-encoder: passes, wall time and mean recall.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import make_words, write_tokenizer
from machine import machine

from m3p.data.tokenizer import open_tokenizer
from m3p.model.build import build_model
from m3p.prepare.regions import pack_regions
from m3p.prepare.shards import ShardWriter
from m3p.recipe.load import parse_recipe
from m3p.retrieval.blocks import Blocks
from m3p.retrieval.metrics import recalls
from m3p.retrieval.pairs import Captions, EmbeddedPictures, pair_batches
from m3p.retrieval.pictures import load_pictures
from m3p.retrieval.ranking import Ranker, Ranking, Way
from m3p.retrieval.scoring import Scorer, scorer_of
from m3p.runs import open_run

WORDS = 2000
TOKENS_OF_A_CAPTION = (10, 30)


def make_pool(folder: Path, options: argparse.Namespace) -> None:
    """Write a tokenizer, and pictures with regions and captions of random words."""
    rng, words = np.random.default_rng(0), make_words(WORDS)
    write_tokenizer(folder / "tokenizer", words)
    with ShardWriter(folder / "shards", "captions", 500) as writer:
        for number in range(options.pictures):
            corner = rng.random((options.regions, 2), np.float32) / 2
            regions = {
                "boxes": np.concatenate([corner, corner + np.float32(0.4)], 1),
                "features": rng.standard_normal((options.regions, options.features), np.float32).astype(np.float16),
            }
            captions = [
                " ".join(rng.choice(words, rng.integers(*TOKENS_OF_A_CAPTION))) for _ in range(options.captions)
            ]
            record = {"id": str(number), "captions": {"en": captions}}
            writer.write({"json": json.dumps(record).encode(), "regions.npz": pack_regions(regions)})


def tiny_scorer(folder: Path, options: argparse.Namespace) -> tuple[Scorer, Any]:
    """Return a scorer with a tiny network of random weights, and the gallery of FOLDER."""
    recipe = parse_recipe(
        {
            "run": {"folder": str(folder / "run"), "steps": 1, "checkpoint_every": 1},
            "model": {
                "tokenizer": str(folder / "tokenizer"),
                "shape": {"layers": 1, "width": 64, "heads": 1, "feed_forward": 128, "positions": 66},
            },
            "visual": {
                "kind": "regions",
                "feature_size": options.features,
                "classes": 0,
                "max_regions": options.regions,
            },
            "objectives": {
                "image_caption": {
                    "batch_size": 8,
                    "micro_batch": 8,
                    "max_tokens": 32,
                    "sources": [{"path": str(folder / "shards")}],
                    "tasks": {"matching": 1.0, "contrastive": 1.0},
                }
            },
            "optimizer": {"learning_rate": 0.001},
            "schedule": {"shape": "linear", "warmup_steps": 0},
            "evaluation": {"pool": {"path": str(folder / "shards")}},
        },
        "the benchmark's recipe",
    )
    tokenizer = open_tokenizer(recipe.tokenizer_folder)
    model = build_model(recipe.model, tokenizer.size, recipe.visual, recipe.tasks, seed=0).eval()
    return Scorer(model, tokenizer, 32, 256), load_pictures(recipe, "pool", recipe.evaluation["pool"])


def score(options: argparse.Namespace) -> None:
    """Score FOLDER in this process, and print one line of JSON: what was measured."""
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    scorer, pictures = tiny_scorer(options.folder, options)
    read = time.perf_counter() - start
    way = Way(options.scoring, options.shortlist if options.scoring == "rerank" else 0)
    found = Ranker(scorer, pictures, way, Blocks(options.folder / options.blocks)).rank()
    seconds = time.perf_counter() - start
    ranks = found.ranks["en"]
    row = {
        "scoring": options.scoring,
        "pictures": len(pictures.pool.images),
        "captions": len(pictures.pool.captions["en"]),
        "passes": found.passes,
        "seconds": round(seconds, 1),
        "seconds to read": round(read, 1),
        "passes per second": round(found.passes / (seconds - read), 1),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "ranks": int(ranks.text_to_image.sum() + 7 * ranks.image_to_text.sum()),
    }
    print(json.dumps(row))


def child(options: argparse.Namespace, scoring: str, blocks: str, kill_after_blocks: int = 0) -> dict[str, Any] | None:
    """Score in a process of its own, which is killed once so many blocks of pairs are there; return its row."""
    words = [sys.executable, __file__, str(options.folder), "--score", "--scoring", scoring, "--blocks", blocks]
    for name in ("pictures", "captions", "regions", "features", "shortlist", "threads"):
        words += [f"--{name}", str(getattr(options, name))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while kill_after_blocks and process.poll() is None:
            if len(list((options.folder / blocks).glob("cross-encoder-*.npy"))) >= kill_after_blocks:
                process.kill()
            time.sleep(0.05)
        said, _ = process.communicate()
    return json.loads(said.splitlines()[-1]) if process.returncode == 0 else None


def large_pool(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each scoring of a pool made out of nothing. Raises SystemExit where a resumed one differs."""
    yield layout(options)
    if not (options.folder / "shards" / "manifest.json").is_file():
        make_pool(options.folder, options)
    for name in ("dual", "one-go", "killed"):
        shutil.rmtree(options.folder / name, ignore_errors=True)
    dual = child(options, "dual", "dual")
    assert dual is not None, "the dual scoring failed"
    yield dual
    whole = child(options, "rerank", "one-go")
    assert whole is not None, "the re-ranking failed"
    yield whole
    blocks = len(list((options.folder / "one-go").glob("cross-encoder-*.npy")))
    assert child(options, "rerank", "killed", kill_after_blocks=max(1, blocks // 2)) is None or blocks == 1, (
        "it was not killed"
    )
    again = child(options, "rerank", "killed")
    assert again is not None, "the resumed re-ranking failed"
    yield {**again, "scoring": "rerank, gone on with after a kill"}
    if again["ranks"] != whole["ranks"]:
        sys.exit("error: a killed scoring that was gone on with gives other ranks than one go")


def layout(options: argparse.Namespace) -> dict[str, Any]:
    """Return how many pairs a second are laid out for the cross-encoder, in one process on one thread."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(*TOKENS_OF_A_CAPTION, 25_000)
    captions = Captions(rng.integers(4, WORDS, lengths.sum()), lengths, np.zeros(len(lengths), np.bool_))
    pictures = EmbeddedPictures(torch.zeros(64 * options.regions, 1), np.full(64, options.regions))
    pairs = np.stack([rng.integers(0, 25_000, 200_000), rng.integers(0, 64, 200_000)], 1)
    start = time.process_time()
    number = sum(len(rows) for rows, _ in pair_batches(captions, pictures, pairs, 64))
    return {"scoring": "laying out pairs", "passes per second": round(number / (time.process_time() - start))}


def of_run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for the exhaustive cross-encoder and one for shortlist + re-ranking, of a trained run."""
    run = open_run(options.run)
    config = run.evaluation(options.evaluation).model_copy(update={"languages": options.languages})
    pictures, scorer = load_pictures(run.recipe, options.evaluation, config), scorer_of(run, config.batch_size)
    for scoring in ("dual", "cross", "rerank"):
        folder = options.run / f".benchmark-{scoring}"
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        blocks = Blocks(folder)
        weight = 0.0 if scoring == "dual" else options.dual_weight
        way = Way(scoring, options.shortlist if scoring == "rerank" else 0, weight)
        found = Ranker(scorer, pictures, way, blocks).rank()
        seconds = time.perf_counter() - start
        blocks.remove()
        yield {
            "scoring": scoring,
            "shortlist": way.shortlist,
            "dual weight": weight,
            "pictures": len(pictures.pool.images),
            "captions": sum(len(captions) for captions in pictures.pool.captions.values()),
            "passes": found.passes,
            "seconds": round(seconds, 2),
            "mean recall": mean_recall(found),
        }


def mean_recall(found: Ranking) -> float:
    """Return the mean recall over languages, in percent."""
    return round(float(np.mean([recalls(ranks)["mean_recall"] for ranks in found.ranks.values()])), 2)


def main() -> None:
    """Measure, print a row a line and, with --json, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where pictures and captions are made")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="of a picture")
    parser.add_argument("--regions", type=int, default=100, help="of a picture")
    parser.add_argument("--features", type=int, default=2048, help="numbers of a region")
    parser.add_argument("--shortlist", type=int, default=2, help="candidates of each query that are scored again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, help="a trained run, in place of FOLDER")
    parser.add_argument("--evaluation", default="dev", help="of the run's recipe")
    parser.add_argument("--languages", nargs="+", help="of the run's evaluation; all of them if left out")
    parser.add_argument("--dual-weight", type=float, default=0.0, help="of the cosine that is added to the logit")
    parser.add_argument("--score", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scoring", default="dual", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", default="blocks", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="store machine and rows")
    options = parser.parse_args()
    if options.score:
        score(options)
        return
    if (options.folder is None) == (options.run is None):
        parser.error("give FOLDER, or --run RUN")
    rows: list[dict[str, Any]] = []
    for row in of_run(options) if options.run else large_pool(options):
        rows.append(row)
        print("  ".join(f"{name}: {value}" for name, value in row.items() if name != "ranks"), flush=True)
    ratios = {}
    if options.run:
        cross, rerank = rows[1], rows[2]
        ratios = {name: round(rerank[name] / cross[name], 3) for name in ("passes", "seconds")}
        ratios["mean recall"] = round(rerank["mean recall"] - cross["mean recall"], 2)
        print(f"re-ranking over exhaustive: {ratios}; mean recall as a difference, in points")
    print(machine())
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
