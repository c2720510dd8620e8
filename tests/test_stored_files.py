"""Files of runs and indexes that are read again: damaged, endless, of another kind, or naming places that they should not."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m3p.ablation.report import Report
from m3p.checkpoints.files import STATE_FILE, read_state
from m3p.checkpoints.init_from import RECORD
from m3p.checkpoints.seen_pictures import SEEN, read_seen
from m3p.checkpoints.selection import BEST, SELECTION, Scored, best_checkpoint, read_selection
from m3p.data.shards.index_folder import index_folder
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.model.weight_files import WeightFiles
from m3p.prepare.captions import prepare_captions
from m3p.prepare.dictionary import prepare_dictionary
from m3p.prepare.pairs import Options
from m3p.prepare.pictures import PictureFolder
from m3p.prepare.text import prepare_text
from m3p.retrieval.result import Evaluation
from m3p.runs import open_run, read_record
from m3p.search.parts import FOLDER, Entry, read_parts, write_part
from m3p.stored_files import load_npy, read_bounded, read_object
from m3p.training.watch.bad_report import BadReport
from tests.retrieval.results import evaluation

DEEP = b'{"a": ' + b"[" * 100_000
SCORED = Scored(step=3, checkpoint="step-00000003", evaluation="dev", scoring="dual", mean_recall=1.0, languages={})


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, numbers=np.arange(3))


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            read_bounded(path)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_bounded(tmp_path / "large", 10)
    assert len(read_bounded(tmp_path / "large", 11)) == 11


@pytest.mark.parametrize("content", [DEEP, b"[]", b"\xff\xfe", b"", b"5"])
def test_what_is_no_object_of_json_is_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 (what each says is its own)
        read_object(tmp_path / "x.json")


def test_what_is_no_array_is_one_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(30))
    whole = path.read_bytes()
    npz(path)
    with pytest.raises(ValueError, match="an archive of several"):
        load_npy(path)
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(whole)
        for place in rng.integers(0, 100, 3):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            load_npy(path)
        except (OSError, ValueError):
            continue


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        (STATE_FILE, DEEP, read_state),
        (RECORD, DEEP, read_record),
        (SELECTION, b"\xff\n", read_selection),
        ("dev.json", DEEP, lambda folder: Evaluation.load(folder / "dev.json")),
    ],
)
def test_a_file_that_is_damaged_or_a_pipe_is_named(
    tmp_path: Path, name: str, content: bytes, read: Callable[[Path], object]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        read(tmp_path)
    (tmp_path / name).unlink()
    if name != SELECTION:  # a run without one has chosen nothing
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}.*no regular file"):
            read(tmp_path)


def test_a_record_of_pictures_that_is_an_archive_is_named(tmp_path: Path) -> None:
    npz(tmp_path / SEEN)
    with pytest.raises(UserError, match=rf"{SEEN} cannot be read .*copy it again, or remove it"):
        read_seen(tmp_path)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "", "latest", "step-3\nstep-4", "\x1b[2J"])
def test_names_of_checkpoints_in_files_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    assert best_checkpoint(checkpoints) is None
    (checkpoints / BEST).write_text(name)
    for call in (lambda: best_checkpoint(checkpoints), lambda: open_run(checkpoints / BEST)):
        with pytest.raises(UserError, match="which is no checkpoint: remove it"):
            call()
    (checkpoints / BEST).write_text("step-00000003\n")
    assert best_checkpoint(checkpoints) == checkpoints / "step-00000003"
    line = SCORED.model_dump() | {"checkpoint": name}
    (tmp_path / SELECTION).write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=rf"{SELECTION} cannot be read"):
        read_selection(tmp_path)


def test_a_copy_of_a_list_of_an_index_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    write_part(tmp_path, 0, [Entry(0, "a", 0, "a.png", "", "x", "", "")], np.ones((1, 2), np.float32))
    whole = (tmp_path / FOLDER / "000000.json").read_bytes()
    for name in ("000000 (copy).json", "0000000000000000000000.json", "7z.json"):
        (tmp_path / FOLDER / name).write_bytes(whole)
    assert [part.number for part in read_parts(tmp_path)] == [0]


def test_too_many_open_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (tmp_path / FOLDER).mkdir()
    part = write_part(tmp_path, 0, [Entry(0, "a", 0, "a.png", "", "x", "", "")], np.ones((1, 2), np.float32))
    monkeypatch.setattr(np, "load", full)
    monkeypatch.setattr("m3p.search.parts.FileMap", full)
    for read in (part.vectors, part.mapped):
        with pytest.raises(UserError, match=r"Too many open files: allow more \(`ulimit -n"):
            read(2)


def test_vectors_that_are_cut_short_while_they_are_searched_end_no_process(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    entries = [Entry(row, f"{row}", 0, "a.png", "", "x", "", "") for row in range(1000)]
    part = write_part(tmp_path, 0, entries, np.arange(100_000, dtype=np.float32).reshape(1000, 100))
    mapped = part.mapped(100)
    assert mapped.take(np.array([3, 999]))[:, 0].tolist() == [300, 99_900]
    os.truncate(tmp_path / FOLDER / part.file, 5000)
    with pytest.raises(UserError, match="was cut short while it was searched: put a copy back"):
        mapped.take(np.array([3, 999]))
    with pytest.raises(UserError, match="cannot be read"):
        part.mapped(100)


def save_evaluation(folder: Path) -> None:
    evaluation().save(folder / "file")


def save_report(folder: Path) -> None:
    Report(recipe="x", overrides=[], seeds=[0], evaluations={}).save(folder)


def save_bad(folder: Path) -> None:
    BadReport(folder, 0)


@pytest.mark.parametrize(
    ("save", "name"),
    [(save_evaluation, "file"), (save_report, "ablation.json"), (save_bad, "bad_samples.txt")],
)
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Path], None], name: str
) -> None:
    real = Path.write_text

    def full(self: Path, text: str, *words: str, **named: str) -> int:
        real(self, text[: len(text) // 2], *words, **named)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / name).write_text("step 0: what was there\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "step 0: what was there\n"


@pytest.mark.parametrize(
    ("pointer", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s12345--4d7a.txt\n", "git annex get"),
    ],
    ids=["lfs", "annex"],
)
@pytest.mark.parametrize(
    "name", ["de.txt", "de.txt.gz", "en-de.txt", "a.jsonl", "a.tar", "sentencepiece.bpe.model", "model.safetensors"]
)
def test_a_pointer_of_a_clone_is_never_taken_for_the_file(
    tmp_path: Path, name: str, pointer: str, command: str
) -> None:
    (tmp_path / name).write_text(pointer)
    read: dict[str, Callable[[], object]] = {
        "de.txt": lambda: prepare_text(tmp_path, tmp_path / "out"),
        "de.txt.gz": lambda: prepare_text(tmp_path, tmp_path / "out"),
        "en-de.txt": lambda: prepare_dictionary(tmp_path, tmp_path / "out"),
        "a.jsonl": lambda: prepare_captions(tmp_path / name, tmp_path / "out", Options(PictureFolder(tmp_path))),
        "a.tar": lambda: index_folder(tmp_path, "captions"),
        "sentencepiece.bpe.model": lambda: Tokenizer(tmp_path),
        "model.safetensors": lambda: WeightFiles(tmp_path),
    }
    with pytest.raises(UserError, match=rf"{name}: is a pointer in the place of the file, .* with `{command}`"):
        read[name]()
    assert not (tmp_path / "out").exists()
