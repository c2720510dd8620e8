"""The fair test of code-switching on real pictures: emoji by vendor, with and without, over seeds. Everything in one command.

    python benchmarks/emoji_by_vendor.py --data ../shared/data [--seeds 3] [--jobs 2] [--json FILE]

Trains on the drawings of noto, twemoji and fluent with English names and keywords; evaluates on openmoji's, with names in 15
languages that were never captioned. Half of the captions are names. Words are learnt from nothing, pictures come from a frozen
tower. Without: the same pairs in the same order, none of them switched. What is there already is not made again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine
from tower_regions import read_records, write_regions

from m3p.objectives.switching import CodeSwitcher, SwitchingConfig

ROOT = Path(__file__).parents[1]
HELD_OUT = "openmoji"
FIELD = "objectives.code_switched.switching.sentence_rate"
M3P = [sys.executable, "-m", "m3p"]
PIECES = 24_000


def write_captions(data: Path, folder: Path, languages: list[str]) -> list[str]:
    """Write train.jsonl and dev.jsonl; return the English captions of train."""
    lines = (data / "concepts.jsonl").read_text(encoding="utf-8").splitlines()
    keywords = {concept["concept"]: concept["keywords"].get("en", []) for concept in map(json.loads, lines)}
    train, dev = list[dict[str, Any]](), list[dict[str, Any]]()
    known = {record["id"] for record in read_records_of(data / "train.jsonl")}
    for record in (record for record in read_records(data) if record["id"] in known):
        names = record["captions"]
        if record.pop("vendor") == HELD_OUT:
            dev.append({**record, "captions": {code: names[code] for code in ("en", *languages) if code in names}})
        else:
            others = [word for word in keywords[record["concept"]] if word != names["en"]]
            train.append({**record, "captions": {"en": [names["en"]] * max(1, len(others)) + others}})
    for split, records in (("train", train), ("dev", dev)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return list(dict.fromkeys(text for record in train for text in record["captions"]["en"]))


def read_records_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of one JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_words(captions: list[str], dictionary: Path, path: Path) -> None:
    """Write what the vocabulary is made of: the English captions, and every translation that a word of them may become."""
    switcher = CodeSwitcher(SwitchingConfig(dictionary=dictionary))
    words = sorted({word for caption in captions for word in caption.split()})
    translations = sorted({text for word in words for text in switcher.translations(word)})
    path.write_text("\n".join([*captions, *translations]) + "\n", encoding="utf-8")


def prepare(data: Path, folder: Path) -> None:
    """Make shards, word lists and vocabulary in `folder`, unless they are there."""
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    raw, regions = folder / "raw", folder.with_name(f"{folder.name}-regions")
    raw.mkdir(parents=True)
    call("prepare", "dictionary", data / "dictionaries", "--output", folder / "dictionary")
    languages = sorted(path.stem.removeprefix("en-") for path in (folder / "dictionary").glob("en-*.tsv"))
    captions = write_captions(data / "emoji", raw, languages)
    write_regions(data / "emoji", data / "vision_tower", regions, side=1)
    for split in ("train", "dev"):
        options = ("--images", data / "emoji", "--regions", regions, "--output", folder / split)
        call("prepare", "captions", raw / f"{split}.jsonl", *options)
    write_words(captions, folder / "dictionary", raw / "words.txt")
    call("prepare", "tokenizer", raw / "words.txt", "--vocabulary", str(PIECES), "--output", folder / "tokenizer")
    (folder / "done").touch()


def call(*arguments: str | Path) -> None:
    """Run an m3p command; its messages are shown."""
    subprocess.run([*M3P, *map(str, arguments)], check=True)


def main() -> None:
    """Prepare, train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds emoji/, dictionaries/ and vision_tower/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1, help="of a run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-by-vendor-ablation"))
    parser.add_argument("--json", type=Path, help="write the comparison here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    prepare(options.data, Path("data_shards/emoji-by-vendor"))
    vary = ("--vary", f"{FIELD}=0,0.9", "--seeds", str(options.seeds))
    at_once = ("--ranks", str(options.ranks), "--jobs", str(options.jobs))
    call("ablate", "emoji_by_vendor", *options.overrides, *vary, *at_once, "--folder", options.folder)
    if options.json:
        report = json.loads((options.folder / "ablation.json").read_text(encoding="utf-8"))
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        found = {"machine": machine(), "commit": commit.stdout.strip(), **report, "recipe": "emoji_by_vendor"}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
