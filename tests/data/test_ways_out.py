"""Each way out that a message about data names is gone: the message, then what it says, then the same command again."""

import gzip
import io
import json
import lzma
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest

from m3p.cli.main import app
from m3p.data.source import Source, SourceConfig
from m3p.errors import UserError
from tests.data.broken import PATCHES, pair, source, write


def m3p(*words: str | Path) -> None:
    """Run `m3p WORDS` in this process. Raises UserError."""
    app([str(word) for word in words], standalone_mode=False)


def refused(message: str, *words: str | Path) -> str:
    """Run `m3p WORDS`, which ends in an error that matches `message`; return the error's text."""
    with pytest.raises(UserError, match=message) as caught:
        m3p(*words)
    return str(caught.value)


def command_in(message: str) -> list[str]:
    """Return the words of the `m3p ...` that a message names between backticks, or behind a colon at its end."""
    found = re.search(r"`m3p ([^`]*)`", message) or re.search(r": m3p (.*)\.$", message)
    assert found, message
    return shlex.split(found[1])


def texts(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def test_an_output_that_is_not_empty_is_replaced_or_another_is_taken(tmp_path: Path) -> None:
    words = ("prepare", "text", texts(tmp_path / "raw", en="One.\n"), "--output", tmp_path / "out")
    m3p(*words)
    refused("choose another folder, or replace it with --overwrite", *words)
    m3p(*words, "--overwrite")
    m3p(*words[:-1], tmp_path / "other")
    (tmp_path / "other" / "en" / "manifest.json").unlink()
    refused(
        "so this command did not write it; .* Choose another folder", *words[:-1], tmp_path / "other", "--overwrite"
    )


def test_texts_in_another_encoding_compression_or_layout(tmp_path: Path) -> None:
    raw = texts(tmp_path / "raw", de="Häuser.\n")
    words = ("prepare", "text", raw, "--output", tmp_path / "out", "--overwrite")
    (raw / "de.txt").write_bytes("Häuser.\n".encode("latin-1"))
    refused("Convert the file, for instance with iconv", *words)
    (raw / "de.txt").write_text((raw / "de.txt").read_bytes().decode("latin-1"))
    (raw / "fr.txt.zst").write_bytes(b"(\xb5/\xfd")
    refused("this compression is not read: unpack, or compress with gzip or xz", *words)
    (raw / "fr.txt.zst").unlink()
    (raw / "fr.txt.xz").write_bytes(lzma.compress(b"Une maison.\n"))
    (raw / "cs.txt.gz").write_bytes(gzip.compress(b"Dum.\n"))
    (raw / "english words.txt").write_text("A house.\n")
    refused(r"the rule is LANG\.txt with a language tag, such as de\.txt", *words)
    (raw / "english words.txt").rename(raw / "en.txt")
    (raw / "fr.txt").write_text("Une maison.\n")
    refused("keep one of them", *words)
    (raw / "fr.txt").unlink()
    (raw / "en.txt").write_text('{"body": "A house."}\n')
    refused("or objects with a field `text`", *words)
    (raw / "en.txt").write_text('{"text": "A house."}\n')
    (raw / "ja.txt").write_text("\n")
    refused("holds no text: remove it, or put one paragraph on a line", *words)
    (raw / "ja.txt").write_text("家\n")
    m3p(*words)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cs", "de", "en", "fr", "ja"]


def test_the_number_that_a_vocabulary_may_have_is_one_that_it_may_have(tmp_path: Path) -> None:
    raw = texts(tmp_path / "raw", en="a dog and a cat\n" * 20)
    words = ("prepare", "tokenizer", raw / "en.txt", "--output", tmp_path / "out", "--algorithm", "bpe", "--vocabulary")
    message = refused("--vocabulary 500 does not fit this text", *words, "500")
    limit = re.search(r"<= (\d+)", message)
    assert limit, message
    refused("does not fit this text", *words, "32") if int(limit[1]) < 32 else m3p(*words, limit[1])


def test_word_lists(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    words = ("prepare", "dictionary", raw, "--output", tmp_path / "out", "--overwrite")
    refused("holds no en-LANG.tsv or en-LANG.txt", *words)
    (raw / "en-de.0-5000.txt").write_text("dog Hund\n")
    refused(r"rename those to use, as en-LANG\.txt", *words)
    (raw / "en-de.0-5000.txt").rename(raw / "en-de.txt")
    (raw / "en-de.tsv").write_text("dog\tHund\n")
    refused("keep one of them", *words)
    (raw / "en-de.txt").unlink()
    (raw / "en-fr.txt").write_text("dog\n")
    refused("the rule is an English word, a tab or a space, and its translation", *words)
    (raw / "en-fr.txt").write_text("dog\tchien\n")
    (raw / "en-cs.txt").write_text("\n")
    refused("is empty after cleaning .*: remove it or fill it", *words)
    (raw / "en-cs.txt").unlink()
    m3p(*words)
    assert {path.stem for path in (tmp_path / "out").glob("*.tsv")} == {"en-de", "en-fr"}


def test_wrong_records_are_left_out_with_skip_bad(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pair(1)["png"])
    records = [{"id": "a", "image": "a.png", "captions": {"en": "one"}}, {"id": "b", "image": "b.png"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ("prepare", "captions", tmp_path / "x.jsonl", "--output", tmp_path / "out")
    refused("Mend them, or leave them out with --skip-bad", *words)
    m3p(*words, "--skip-bad")
    assert source(tmp_path / "out", PATCHES).manifest.samples == 1


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_tars_are_decompressed_sorted_renamed_and_told_their_language(tmp_path: Path) -> None:
    tars, path = tmp_path / "tars", tmp_path / "tars" / "0.tar"
    tars.mkdir()
    index = ("index", tars, "--kind", "text")
    refused("give the folder that holds the shards", *index, "--language", "en")
    with tarfile.open(path, "w") as archive:
        for name in ("1.txt", "2.txt", "1.json"):
            add(archive, name, b"{}")
    with (tars / "1.tar.gz").open("wb") as packed:
        packed.write(gzip.compress(path.read_bytes()))
    refused("decompress them .*, or move them to another folder", *index, "--language", "en")
    (tars / "1.tar.gz").rename(tmp_path / "1.tar.gz")
    refused(r"pack the tar again with its files sorted by name", *index, "--language", "en")
    with tarfile.open(path, "w") as archive:
        for name in sorted(("1.txt", "2.txt", "1.json")):
            add(archive, name, b"{}")
    refused("no language tag; write it like de, zh-Hant", *index, "--language", "German!")
    command = command_in(refused("text needs its language", *index))
    m3p(*["en" if word == "xx" else word for word in command])
    assert source(tars, None).manifest.language == "en"


def test_files_whose_names_have_dots_are_read_under_the_names_that_are_named(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    files = {"photo.of a dog.png": pair(1)["png"], "photo.of a dog.txt": b"a dog"}

    def pack() -> None:
        with tarfile.open(tars / "0.tar", "w") as archive:
            for name, content in files.items():
                add(archive, name, content)

    pack()
    message = refused("A key ends at the first dot of the file name", "index", tars, "--kind", "captions")
    found = re.search(r"rename '(.*)' to '(.*)', and all others like it", message)
    assert found, message
    old, new = (Path(name).stem for name in found.groups())
    files = {name.replace(old, new): content for name, content in files.items()}
    pack()
    m3p("index", tars, "--kind", "captions")


def test_shards_that_changed_are_read_after_the_command_that_is_named(tmp_path: Path) -> None:
    texts = [{"txt": f"{number}".encode() * 3000} for number in range(4)]
    write(tmp_path / "a.tar", [(str(number), text) for number, text in enumerate(texts[:2])])
    m3p("index", tmp_path, "--kind", "text", "--language", "en")
    before = source(tmp_path, None)
    write(tmp_path / "a.tar", [(str(number), text) for number, text in enumerate(texts)])
    with pytest.raises(UserError, match="Copy the shards here again, or") as caught:
        source(tmp_path, None)
    m3p(*command_in(str(caught.value)))
    assert source(tmp_path, None).manifest.samples == 4
    with pytest.raises(UserError, match="if that was done meanwhile, start again"):
        before.read_many(np.arange(2))


def test_a_manifest_that_was_changed_by_hand_counts_without_its_checksum(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("1", {"txt": b"one"})])
    m3p("index", tmp_path, "--kind", "text", "--language", "en")
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"en"', '"de"'))
    with pytest.raises(UserError, match="If it was meant to change, delete the field checksum in it") as caught:
        source(tmp_path, None)
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"checksum"' not in line]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    assert source(tmp_path, None).manifest.language == "de", str(caught.value)


def test_a_source_of_another_kind_or_language(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [("1", pair(1))])
    m3p("index", tmp_path, "--kind", "captions")
    config = SourceConfig(path=str(tmp_path), languages=["xx"])
    with pytest.raises(UserError, match=r"no caption in xx .*; it has captions in (\w+)") as caught:
        Source(tmp_path, config, (0, "x", 0), 1, PATCHES.load)
    known = str(caught.value).rpartition(" ")[2]
    assert Source(tmp_path, config.model_copy(update={"languages": [known]}), (0, "x", 0), 1, PATCHES.load)
