"""Parquet files and folders of Hugging Face `datasets`, in the layouts of the hub and of `save_to_disk`."""

import builtins
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3p.errors import UserError
from tests.prepare.sets.raw import origin, run, stored


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(first: int, **columns: list[Any]) -> pa.Table:
    images = [{"bytes": encoded(40 * number), "path": f"{number}.png"} for number in range(first, first + 2)]
    return pa.table({"image": images, "image_id": [first, first + 1], **columns})


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 2)):
        pq.write_table(
            table(first, caption=[["a dog", "the dog"], ["a cat"]], caption_de=["ein Hund", None]),
            tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet",
        )
    return tmp_path


def test_a_split_of_the_hubs_layout(hub: Path) -> None:
    with pytest.raises(UserError, match="holds test, train: say which with --split"):
        run("parquet", hub / "set", output=hub / "out")
    run("parquet", hub / "set", "--split", "train", "--language", "en", "--caption-source", "human", output=hub / "out")
    found = stored(hub / "out")
    assert found["0"]["captions"] == {"de": ["ein Hund"], "en": ["a dog", "the dog"]}
    assert found["1"] == {"id": "1", "captions": {"en": ["a cat"]}, "files": ["png"]}
    told = origin(hub / "out")
    assert (told["set"], told["split"], told["caption_source"]) == ("set", "train", "human")


def test_columns_by_name_and_plain_bytes(tmp_path: Path) -> None:
    images = [encoded(9), encoded(99)]
    pq.write_table(pa.table({"jpg": images, "french": ["un chien", "un chat"]}), tmp_path / "a.parquet")
    run("parquet", tmp_path / "a.parquet", "--image-column", "jpg", "--caption", "fr=french", output=tmp_path / "out")
    assert stored(tmp_path / "out")["1"]["captions"] == {"fr": ["un chat"]}


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        made = table(0, text=["a dog", "a cat"])
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, made.schema) as out,
        ):
            out.write_table(made)
    run("parquet", tmp_path / "set", "--split", "test", "--language", "en", output=tmp_path / "out")
    assert stored(tmp_path / "out")["1"]["captions"] == {"en": ["a cat"]}


@pytest.mark.long
def test_wrong_files_say_so(hub: Path, tmp_path: Path) -> None:
    words = ("parquet", hub / "set", "--split", "train")
    with pytest.raises(
        UserError, match=r"has no column picture; it has image, image_id, caption, caption_de: name them"
    ):
        run(*words, "--image-column", "picture", output=hub / "out")
    with pytest.raises(UserError, match=r"--caption caption: write LANG=COLUMN"):
        run(*words, "--caption", "caption", output=hub / "out")
    with pytest.raises(UserError, match=r"row 0: .* names no language for caption .*or the language with --language"):
        run(*words, output=hub / "out")
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match=r"b\.parquet cannot be read as parquet .*: copy it again"):
        run("parquet", tmp_path / "b.parquet", output=tmp_path / "out")
    pq.write_table(pa.table({"image": [b"no picture"], "caption": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"row 0: image .* cannot be used: its format is unknown"):
        run("parquet", tmp_path / "b.parquet", "--language", "en", output=tmp_path / "out")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_names_of_columns_that_are_no_text(tmp_path: Path, ending: str) -> None:
    path, made = tmp_path / f"a.{ending}", pa.table({"image": [b"x"], "caption_x": ["y"]})
    if ending == "parquet":
        pq.write_table(made, path, store_schema=False)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as out:
            out.write_table(made)
    path.write_bytes(path.read_bytes().replace(b"caption_x", b"capti\xff\xfe_x"))
    with pytest.raises(UserError, match=rf"a\.{ending} (is broken|cannot be read).*: copy it again"):
        run("parquet", path, "--language", "en", output=tmp_path / "out")


def test_without_pyarrow_the_way_out_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *others: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'm3p-trainer\[parquet\]'"):
        run("parquet", hub / "set", "--split", "train", output=hub / "out")


def written(path: Path, made: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path


@pytest.mark.parametrize("split", [[0, 1], [0.0, None], [True, False], [["train"], ["test"]]])
def test_a_split_that_is_no_name_is_refused(tmp_path: Path, split: list[Any]) -> None:
    path = written(tmp_path / "a.parquet", table(0, caption=["a dog", "a cat"], split=split))
    with pytest.raises(UserError, match=r"row 0: its column split holds .*; want the name of a split"):
        run("parquet", path, "--language", "en", "--split", "test", output=tmp_path / "out")


def test_rows_of_other_splits_are_left_out_by_their_column(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", table(0, caption=["a dog", "a cat"], split=["train", "test"]))
    options = ("--language", "en")
    with pytest.raises(UserError, match="its column split says train and test: say which with --split"):
        run("parquet", path, *options, output=tmp_path / "out")
    with pytest.raises(UserError, match="no row is of split val by its column split, which has train 1, test 1"):
        run("parquet", path, *options, "--split", "val", output=tmp_path / "out")
    said = run("parquet", path, *options, "--split", "test", output=tmp_path / "out")
    assert "rows of other splits, by its column split, were left out: train 1" in said
    assert list(stored(tmp_path / "out")) == ["1"]


def test_files_of_several_configurations_and_missing_ones_are_refused(tmp_path: Path) -> None:
    made = table(0, caption=["a dog", "a cat"])
    for name in ("de/test-00000-of-00001", "en/test-00000-of-00001"):
        written(tmp_path / "set" / f"{name}.parquet", made)
    with pytest.raises(UserError, match=r"in several folders, .*: de, en\. Give one of them: .*/set/de"):
        run("parquet", tmp_path / "set", "--split", "test", "--language", "en", output=tmp_path / "out")
    written(tmp_path / "set" / "de" / "test-00002-of-00003.parquet", made)
    with pytest.raises(UserError, match=r"2 files of 3 of this split are there; 1 are missing, such as number 1"):
        run("parquet", tmp_path / "set" / "de", "--split", "test", "--language", "en", output=tmp_path / "out")


def test_several_columns_of_one_language_are_put_together(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", table(0, one=["a dog", "a cat"], more=[["dog"], ["cat", "pet"]]))
    run("parquet", path, "--caption", "en=one", "--caption", "en=more", output=tmp_path / "out")
    assert stored(tmp_path / "out")["1"]["captions"] == {"en": ["a cat", "cat", "pet"]}
