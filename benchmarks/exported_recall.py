"""Does the exported folder find with other libraries what `m3p evaluate` says? Recall of an export, computed without m3p.

    python benchmarks/exported_recall.py RUN --transformers PYTHON --sentence-transformers PYTHON [--json FILE]

RUN is a run folder with an evaluation in its recipe. Each PYTHON is the interpreter of an environment that has that library and
not m3p; name one or both. The run is exported, the captions are embedded there, and ranked against our embeddings of the
pictures. Exit code 1 where a mean recall differs by 0.1 or more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from rich.table import Table

from m3p.console import PlainConsole
from m3p.errors import UserError
from m3p.export import export_run
from m3p.retrieval.metrics import QueryRanks, query_ranks, recalls
from m3p.retrieval.pictures import gallery_of
from m3p.retrieval.pool import Pool
from m3p.retrieval.scoring import scorer_of
from m3p.runs import open_run

ALLOWED = 0.1
"""Percentage points between a mean recall there and here, at most."""
EMBED = Path(__file__).with_name("exported_embed.py")
Floats = NDArray[np.float32]


def embed_elsewhere(
    python: str, library: str, folder: Path, texts: list[str], work: Path
) -> tuple[Floats, dict[str, str]]:
    """Return the embeddings of `texts` by `library` in another environment, and the versions of its packages."""
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(EMBED), str(folder), library, str(work / "texts.json"), str(work / "found.npz")]
    subprocess.run(command, check=True, env=clean, cwd=work)
    with np.load(work / "found.npz", allow_pickle=False) as found:
        return found["embeddings"], json.loads(str(found["packages"]))


def mean_recalls(pool: Pool, images: Floats, texts: dict[str, Floats]) -> dict[str, float]:
    """Return language -> mean recall in percent of the captions `texts` [C, D] and pictures `images` [N, D]."""
    found = {}
    for language, embedded in texts.items():
        scores, right = images @ embedded.T, pool.right(language)
        found[language] = recalls(QueryRanks(query_ranks(scores.T, right.T), query_ranks(scores, right)))["mean_recall"]
    return found


def compare(run: Path, name: str, pythons: dict[str, str]) -> dict[str, Any]:
    """Export `run` and return its mean recalls here and in each library. Raises UserError."""
    opened = open_run(run)
    pictures = gallery_of(opened, name)
    captions = {
        language: [caption.text for caption in found] for language, found in pictures.pool.captions.items() if found
    }
    scorer = scorer_of(opened)
    images = scorer.embed_pictures(pictures.visuals)
    here = mean_recalls(pictures.pool, images, {code: scorer.embed_texts(texts) for code, texts in captions.items()})
    rows = [{"library": "m3p", "mean_recall": here, "largest_difference": 0.0}]
    with tempfile.TemporaryDirectory() as work:
        said = export_run(run, Path(work, "export"), "sentence-transformers")
        for library, python in pythons.items():
            every = [text for texts in captions.values() for text in texts]
            found, packages = embed_elsewhere(python, library, Path(work, "export"), every, Path(work))
            ends = np.cumsum([len(texts) for texts in captions.values()])[:-1]
            there = mean_recalls(pictures.pool, images, dict(zip(captions, np.split(found, ends), strict=True)))
            rows.append(
                {
                    "library": library,
                    "mean_recall": there,
                    "largest_difference": max(abs(there[code] - here[code]) for code in here),
                    "packages": {key: packages.get(key, "-") for key in PACKAGES},
                }
            )
    return {"machine": machine(), "run": run.name, "evaluation": name, "export": said.split(": ", 1)[1], "rows": rows}


PACKAGES = ("transformers", "sentence-transformers", "tokenizers", "torch", "sentencepiece", "m3p")
"""Those that the result names; "-" for one that the environment does not have."""


def show(result: dict[str, Any]) -> None:
    """Print one row a library."""
    languages = list(result["rows"][0]["mean_recall"])
    table = Table(title=f"{result['run']}, {result['evaluation']}: mean recall, percent")
    for head in ("captions embedded by", *languages, "largest difference"):
        table.add_column(head)
    for row in result["rows"]:
        figures = [f"{row['mean_recall'][code]:.2f}" for code in languages]
        table.add_row(row["library"], *figures, f"{row['largest_difference']:.3f}")
    PlainConsole().print(table)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--evaluation", help="a name in the recipe's evaluation section; the first if left out")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--sentence-transformers", metavar="PYTHON")
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args())
    pythons = {name: given[name.replace("-", "_")] for name in ("transformers", "sentence-transformers")}
    pythons = {name: python for name, python in pythons.items() if python}
    if not pythons:
        parser.error("name an interpreter: --transformers PYTHON, --sentence-transformers PYTHON, or both")
    try:
        names = list(open_run(given["run"]).recipe.evaluation)
        if not names:
            raise UserError(f"{given['run']}: has no evaluation in its recipe; name a run that has one")
        result = compare(given["run"], given["evaluation"] or names[0], pythons)
    except UserError as error:
        sys.exit(f"error: {error}")
    show(result)
    if given["json"]:
        given["json"].write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(int(any(row["largest_difference"] >= ALLOWED for row in result["rows"])))


if __name__ == "__main__":
    main()
