"""Which files of a folder hold a split, as Hugging Face's hub and `datasets` name them; and that none of them is missing.

data/train-00000-of-00002.parquet           as the hub has them; the split is the name's first part
de/test-00000-of-00001.parquet              a folder for each configuration, such as a language
train/data-00000-of-00001.arrow             DatasetDict.save_to_disk
data-00000-of-00001.arrow                   Dataset.save_to_disk
"""

import re
from collections.abc import Sequence
from pathlib import Path

from m3p.errors import UserError

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d+)-of-(?P<count>\d+)")


def split_files(source: Path, split: str) -> list[Path]:
    """Return the files of a split, or `source` where it is a file.

    Raises UserError where there are none, or those of several splits or configurations, and where one is missing.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist: give a .parquet file, or the folder of a dataset.")
    splits = _splits(source)
    if (split and split not in splits) or (not split and len(splits) != 1):
        listed = ", ".join(splits) or "no .parquet or .arrow file"
        raise UserError(
            f"{source} holds {listed}: {f'it has no split {split}' if split else 'say which with --split'}."
        )
    chosen = splits[split] if split else next(iter(splits.values()))
    _check(source, chosen)
    return chosen


def _splits(source: Path) -> dict[str, list[Path]]:
    """Return all files by split."""
    splits: dict[str, list[Path]] = {}
    for path in sorted([*source.rglob("*.parquet"), *source.rglob("*.arrow")]):
        # save_to_disk names its files data-*.arrow, in a folder a split; the hub train-*.parquet.
        name = path.name.partition("-")[0].partition(".")[0]
        own = path.parent.name if path.suffix == ".arrow" and path.parent != source else name
        splits.setdefault(own, []).append(path)
    return splits


def _check(source: Path, files: Sequence[Path]) -> None:
    """Raise UserError where the files of a split are of several configurations, or are not all there."""
    folders = list(dict.fromkeys(path.parent for path in files))
    if len(folders) > 1:
        names = ", ".join(str(folder.relative_to(source)) for folder in folders)
        raise UserError(
            f"{source} holds this split in several folders, as configurations or languages are kept: {names}. Give one of them: "
            f"{folders[0]}."
        )
    parts = [match for path in files if (match := _PART.fullmatch(path.stem))]
    counts = {int(part["count"]) for part in parts}
    missing = sorted(set(range(max(counts, default=0))) - {int(part["number"]) for part in parts})
    if missing or len(counts) > 1:
        wrong = (
            f"{len(missing):,} are missing, such as number {missing[0]}" if missing else "their names count differently"
        )
        raise UserError(
            f"{folders[0]}: {len(files):,} files of {max(counts):,} of this split are there; {wrong}: copy all."
        )
