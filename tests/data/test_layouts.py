"""Captions in other people's layouts: what the index counts is what training reads, or it is refused by name."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from m3p.data.order.shuffle import Place
from m3p.data.records import read_record
from m3p.data.sample import BadSamples
from m3p.data.shards.index_folder import index_folder
from m3p.data.source import Source
from m3p.data.storage.folders import LocalFolder
from m3p.errors import UserError
from tests.data.broken import picture, read_many, source, write

FIVE = ["a dog", "a small dog", "a dog runs", "the dog", "dogs"]


def text(content: object) -> bytes:
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


LAYOUTS: dict[str, tuple[dict[str, bytes], dict[str, list[str]]]] = {
    "object": ({"json": text({"captions": {"en": FIVE, "de": "ein Hund"}})}, {"en": FIVE, "de": ["ein Hund"]}),
    "img2dataset": ({"txt": b"a dog", "json": text({"caption": "a dog", "url": "x"})}, {"en": ["a dog"]}),
    "laion": ({"txt": b"een hond", "json": text({"caption": "een hond", "LANGUAGE": "nl"})}, {"nl": ["een hond"]}),
    "lines of txt": ({"txt": text("\n".join(FIVE) + "\n")}, {"en": FIVE}),
    "list": ({"json": text({"captions": FIVE})}, {"en": FIVE}),
    "one text": ({"json": text({"captions": "a dog"})}, {"en": ["a dog"]}),
    "json is a list": ({"json": text(FIVE)}, {"en": FIVE}),
    "caption alone": ({"json": text({"caption": "a dog"})}, {"en": ["a dog"]}),
    "caption is a list": ({"json": text({"caption": FIVE}), "txt": b"a dog"}, {"en": FIVE}),
    "fields": ({"json": text({"caption_de": "ein Hund", "caption_en": FIVE, "caption_id": "17"})},
               {"de": ["ein Hund"], "en": FIVE}),
    "fields of a caption": ({"json": text({"caption_en": FIVE, "caption_en_tokens": ["a", "dog"], "caption_en_score": "high",
                                           "caption_no": "17", "caption_pt_BR": "cão"})}, {"en": FIVE, "pt-BR": ["cão"]}),
    "fields and a plain one": ({"json": text({"caption": "a dog", "caption_zh_TW": "狗"})}, {"zh-TW": ["狗"], "en": ["a dog"]}),
    "json by language": ({"json": text({"en": FIVE, "de": ["ein Hund"], "url": "x", "id": "7"})},
                         {"en": FIVE, "de": ["ein Hund"]}),
    "numbered files": ({f"{number}.txt": text(one) for number, one in enumerate(FIVE)}, {"en": FIVE}),
    "a file a language": ({"en.txt": text("\n".join(FIVE)), "de.txt": b"ein Hund"}, {"en": FIVE, "de": ["ein Hund"]}),
}  # fmt: skip


def folder_of(folder: Path, *samples: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    # No two pictures alike.
    write(
        folder / "a.tar",
        [(f"{number:03d}", {"jpg": picture(size=20 + number), **one}) for number, one in enumerate(samples)],
    )
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_counted_as_it_is_read(tmp_path: Path, layout: str) -> None:
    members, captions = LAYOUTS[layout]
    manifest = index_folder(folder_of(tmp_path, members, members), "captions")
    assert manifest.captions == dict.fromkeys(sorted(captions), 2)
    bad = BadSamples([])
    assert source(tmp_path).read(0, bad).captions == captions
    assert bad.seen == []


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("object", "img2dataset", "laion")])
def test_index_says_where_captions_were_found(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    index_folder(folder_of(tmp_path, LAYOUTS[layout][0]), "captions")
    assert "the captions of 1 of 1 samples come from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "members",
    [
        {"json": text({"sentences": [{"raw": "a dog"}]})},
        {"json": text({"captions": [{"en": "a dog"}]})},
        {"json": text({"captions": {"en": {"0": "a dog"}}})},
        {"json": text({"url": "a dog", "key": "000"})},
        {"txt": b""},
        {"0.txt": b"a dog", "1.txt": b" \n"},
        {"txt": b"x" * (16 * 2**20 + 1)},
        {"json": b'{"captions": {"en": "' + b"x" * (16 * 2**20) + b'"}}'},
    ],
    ids=[
        "Karpathy",
        "list of objects",
        "nested",
        "fields of others",
        "empty",
        "one is empty",
        "huge text",
        "huge json",
    ],
)
def test_what_no_layout_knows_is_unusable_for_the_index_and_bad_in_training(
    tmp_path: Path, members: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    index_folder(folder_of(tmp_path, members, {"txt": b"a cat"}), "captions")
    assert "1 of 2 samples lack" in capsys.readouterr().out
    bad = BadSamples([])
    read_many(source(tmp_path), 2, bad)
    assert len(bad.seen) == 1
    reason = bad.seen[0].partition(", sample 0: ")[2]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match="none of its 1 samples has a picture") as refused:
        index_folder(folder_of(tmp_path, members), "captions")
    assert reason.split(";")[0][:40] in str(refused.value)


def test_index_names_languages_that_are_no_codes_or_stand_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"english": "a dog", "en": "a cat", "EN": "a cow", "pt_BR": "um cão", "pt-br": "um cão", "zh-Hant": "狗"}
    index_folder(
        folder_of(tmp_path, *({"json": text({"captions": {name: one}})} for name, one in odd.items())), "captions"
    )
    said = capsys.readouterr().out
    assert "english (1), pt_BR (1) are no language codes" in said
    assert "EN (1), en (1) count as languages of their own" in said
    assert "pt-br (1), pt_BR (1) count as languages of their own" in said
    assert "Hant" not in said.replace("zh-Hant or pt-BR", "")


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"json": {"caption": "een hond", "LANGUAGE": "nl"}, "txt": "een hond"}, {"nl": ["een hond"]}),
        ({"json": {"caption": "een hond", "lang": "nl"}}, {"nl": "een hond"}),
        ({"json": {"captions": ["een hond"], "language": "nl", "lang": "nl"}}, {"nl": ["een hond"]}),
        ({"json": {"language": "dutch"}, "txt": "a dog"}, {"en": ["a dog"]}),
        ({"json": {"language": "nl", "lang": "de"}, "txt": "a dog"}, {"en": ["a dog"]}),
        ({"json": {"caption_de": "ein Hund", "language": "nl"}}, {"de": "ein Hund"}),
        ({"json": {"captions": {"de": "ein Hund"}, "language": "nl"}}, {"de": "ein Hund"}),
    ],
)
def test_a_record_says_the_language_of_captions_that_name_none(members: Any, captions: dict[str, Any]) -> None:
    record = read_record({name: text(value) for name, value in members.items()}, "en")
    assert record.captions == captions
    said = len(captions) == 1 and "nl" in captions
    assert record.unnamed == ("en" in captions)
    assert any(name.lower() in ("language", "lang") for name in record.unread) != said


def test_index_names_captions_that_only_say_that_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["nan", " None ", "N/A", "<NA>", "???????", "--", "None of the dogs", "nano", "¿?"]
    index_folder(folder_of(tmp_path, *({"json": text({"captions": {"en": [one, "nan"]}})} for one in said)), "captions")
    said_of = capsys.readouterr().out
    assert "captions that only say that there is none are trained on and searched for as they stand" in said_of
    assert said_of.count("\n") == 1
    assert ": nan (10), None (1), N/A (1), <NA> (1), ??????? (1), -- (1): leave" in said_of


def test_fields_and_files_that_are_not_read_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"json": text({"captions": {"en": "a dog"}, "translations": {"de": "ein Hund"}, "url": "x"}), "cls": b"1"}
    index_folder(folder_of(tmp_path, record, record, {**record, "txt": b"another"}), "captions")
    lines = [line for line in capsys.readouterr().out.splitlines() if "nothing is read" in line]
    assert len(lines) == 1
    for name in (
        "KEY.cls (3)",
        "the field translations (3)",
        "the field url (3)",
        "KEY.txt beside captions in KEY.json (1)",
    ):
        assert name in lines[0]


@pytest.mark.parametrize(
    ("members", "unread"),
    [
        ({"json": text({"caption": "a dog", "caption_en": "a cat"})}, "the field caption (1)"),
        ({"json": text({"caption": "a dog"}), "txt": b"a cat"}, "the field caption (1)"),
        ({"json": text({"caption_de": "ein Hund"}), "txt": b"a cat"}, "KEY.txt beside captions in KEY.json (1)"),
        ({"txt": b"a cat", "png": picture(size=30)}, "KEY.png beside KEY.jpg (1)"),
        (
            {"txt": b"a cat", "webp": picture(size=30), "jpeg": picture(size=31)},
            "KEY.jpeg beside KEY.jpg (1), KEY.webp beside",
        ),
        ({"json": text({"caption": "a dog", "caption_en": ["a cat", "a  dog"]})}, ""),
        ({"json": text({"caption": "a dog\nruns"}), "txt": b"a dog\r\nruns\n"}, ""),
    ],
)
def test_what_a_sample_says_twice_and_otherwise_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: dict[str, bytes], unread: str
) -> None:
    index_folder(folder_of(tmp_path, members), "captions")
    said = capsys.readouterr().out
    assert f"nothing is read from {unread}" in said if unread else "nothing is read" not in said


def rows(folder: Path, captions: int = 5) -> Path:
    """Three pictures, a sample for each of their captions."""
    folder.mkdir()
    samples = [(number, caption) for number in range(3) for caption in range(captions)]
    write(
        folder / "a.tar",
        [
            (f"{number}-{caption}", {"jpg": picture(size=20 + number), "txt": f"picture {number}, {caption}".encode()})
            for number, caption in samples
        ],
    )
    return folder


def test_a_row_a_caption_is_said_and_its_pictures_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_folder(rows(tmp_path / "rows"), "captions")
    assert "15 samples have only 3 different pictures" in capsys.readouterr().out
    bad = BadSamples([])
    made = source(tmp_path / "rows")
    found = [made.read_place(Place(0, 0, number), bad, augment=False) for number in range(15)]
    concepts = [sample.concept for sample in found]
    assert len(set(concepts)) == 3
    assert concepts == [concepts[number // 5 * 5] for number in range(15)]
    together = {sample.name: sample.concept for sample in read_many(made, 15, bad)}
    assert together == {sample.name: sample.concept for sample in found}


def test_a_picture_is_itself_in_two_sources(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        index_folder(rows(tmp_path / name, 1), "captions")
        made, bad = source(tmp_path / name), BadSamples([])
        found.append([made.read_place(Place(0, 0, number), bad, augment=False) for number in range(3)])
    assert [sample.concept for sample in found[0]] == [sample.concept for sample in found[1]]
    assert all(one.name != two.name for one, two in zip(*found, strict=True))


def fill(folder: Path, tag: str) -> None:
    """Shards whose names, sizes and pictures are the same for all tags of one length."""
    for shard in range(4):
        with tarfile.open(folder / f"shard-{shard:06d}.tar", "w") as tar:
            for number in range(6):
                record = json.dumps({"id": f"{tag}-{shard}-{number}", "captions": {"en": [f"{tag} caption"]}}).encode()
                for extension, content in (("json", record), ("jpg", picture())):
                    info = tarfile.TarInfo(f"{number:02d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_source_prepared_again_while_it_is_read_is_an_error_that_names_it(tmp_path: Path, indexed: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    fill(folder, "OLD")
    index_folder(folder, "captions")
    made: Source = source(folder)
    bad, seen = BadSamples([]), []
    seen += [made.read(index, bad).id for index in range(6)]  # one shard
    (tmp_path / "new").mkdir()
    fill(tmp_path / "new", "NEW")
    index_folder(tmp_path / "new", "captions")
    for path in (tmp_path / "new").iterdir():
        if indexed or path.suffix == ".tar":
            path.replace(folder / path.name)
    with pytest.raises(
        UserError, match=rf"{folder}/shard-00000\d\.tar (was prepared or indexed again|holds other samples)"
    ):
        seen += [made.read(index, bad).id for index in range(6, 24)]
    assert bad.seen == []
    assert all(name.startswith("OLD") for name in seen)
    if indexed:
        assert source(folder).read(0, bad).id.startswith("NEW"), "a new run takes what is there"


@pytest.mark.long
def test_a_flipped_bit_of_an_index_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *({"txt": f"picture {number}".encode()} for number in range(6)))
    index_folder(folder, "captions")
    whole = (folder / "a.idx").read_bytes()
    wanted = [sample.captions for sample in read_many(source(folder), 6, BadSamples([]))]
    for place in range(128, len(whole), 7):
        (folder / "a.idx").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        if len(whole) - 61 - 128 <= place < len(whole) - 61:  # numpy's words before the seal tell nothing
            assert [sample.captions for sample in read_many(source(folder), 6, BadSamples([]))] == wanted
            continue
        with pytest.raises(UserError, match=r"a\.tar (has an index|has a damaged index|was prepared or indexed again)"):
            read_many(source(folder), 6, BadSamples([]))


def test_a_damaged_index_of_an_open_folder_names_itself(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"txt": b"a dog"})
    index_folder(folder, "captions")
    local = LocalFolder(folder)
    content = bytearray((folder / "a.idx").read_bytes())
    content[-70] ^= 1
    content[130] ^= 1
    (folder / "a.idx").write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.tar has a damaged index \(a\.idx: its checksum is another\): run `m3p index` again"
    ):
        source(local.path).read(0, BadSamples([]))
