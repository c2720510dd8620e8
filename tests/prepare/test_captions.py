import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3p.data.shards.sample_members import members
from m3p.errors import UserError
from m3p.prepare.captions import prepare_captions
from m3p.prepare.pairs import Options, caption_mistakes
from m3p.prepare.pictures import PictureFolder

Record = dict[str, Any]


class Corpus:
    """A small raw corpus whose records and region files a test can spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.regions = folder / "regions"
        self.regions.mkdir()
        self.records: list[Record | str] = []
        for number, form in enumerate(("jpeg", "png", "webp")):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.{form}")
            captions = {"en": f"picture  {number}\n", "de": ["ein Bild", "Bild"]}
            self.records.append({"id": f"p{number}", "image": f"{number}.{form}", "captions": captions, "vendor": "x"})
            self.write_regions(f"p{number}")

    def write_regions(self, name: str, **arrays: Any) -> None:
        whole = {
            "boxes": np.full((2, 4), 0.5),
            "features": np.ones((2, 6)),
            "class_ids": np.ones((2, 3), np.int64),
            "class_probs": np.ones((2, 3), np.float32) / 3,
        }
        np.savez(self.regions / f"{name}.npz", **{k: v for k, v in {**whole, **arrays}.items() if v is not None})

    def prepare(self, **options: Any) -> list[dict[str, bytes]]:
        source = self.folder / "all.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in self.records]
        source.write_text("\n".join(lines) + "\n")
        output = self.folder / "output"
        prepare_captions(source, output, Options(PictureFolder(self.folder), **options))
        offsets = np.load(output / "shard-000000.idx")
        content = (output / "shard-000000.tar").read_bytes()
        return [members(content[start:end]) for start, end in itertools.pairwise(offsets)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_notes_name_the_folder_that_stays(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    corpus.records.append({"id": "again", "image": "0.jpeg", "captions": {"en": "nan"}})
    corpus.write_regions("again")
    corpus.prepare()
    said = capsys.readouterr().out
    assert f"{corpus.folder / 'output'}: 4 samples have only 3 different pictures" in said
    assert f"{corpus.folder / 'output'}: captions that only say" in said
    assert ".partial" not in said


def test_different_pictures_of_one_published_id_are_said(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    for record, name in zip(corpus.records, ("coco/1", "coco/1", "coco/2"), strict=True):
        assert isinstance(record, dict)
        record["published_id"] = name
    corpus.prepare()
    assert "2 different pictures share 1 of 2 published_id" in capsys.readouterr().out


def test_writes_pictures_as_they_are_and_captions_as_lists(corpus: Corpus) -> None:
    assert isinstance(corpus.records[0], dict)
    corpus.records[0]["concept"] = "c"
    samples = corpus.prepare()
    assert [sorted(sample) for sample in samples] == [["jpg", "json"], ["json", "png"], ["json", "webp"]]
    assert samples[0]["jpg"] == (corpus.folder / "0.jpeg").read_bytes()
    assert json.loads(samples[0]["json"]) == {
        "id": "p0",
        "concept": "c",
        "captions": {"en": ["picture 0"], "de": ["ein Bild", "Bild"]},
    }


def test_packs_regions_in_the_types_of_shards(corpus: Corpus) -> None:
    corpus.write_regions("p1", class_ids=None, class_probs=None)
    samples = corpus.prepare(regions=corpus.regions)
    with np.load(io.BytesIO(samples[0]["regions.npz"]), allow_pickle=False) as arrays:
        types = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    assert types == {
        "boxes": ("float32", (2, 4)),
        "features": ("float16", (2, 6)),
        "class_ids": ("int32", (2, 3)),
        "class_probs": ("float16", (2, 3)),
    }
    with np.load(io.BytesIO(samples[1]["regions.npz"]), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["boxes", "features"]


SPOILED: list[tuple[str, Callable[[Record], Any]]] = [
    ("line 2: image 'none.jpg' does not exist", lambda r: r.update(image="none.jpg")),
    ("line 2: image is None", lambda r: r.pop("image")),
    ("line 2: captions are None; the rule", lambda r: r.pop("captions")),
    (r"line 2: captions are \{\}", lambda r: r.update(captions={})),
    ("line 2: caption en is ' '; .* none empty", lambda r: r.update(captions={"en": " "})),
    (r"line 2: caption en is \[\]", lambda r: r.update(captions={"en": []})),
    ("line 2: caption en is 3", lambda r: r.update(captions={"en": 3})),
    ("line 2: caption language 'English text' is no", lambda r: r.update(captions={"English text": "x"})),
    ("line 2: id 'p0' is that of line 1 again", lambda r: r.update(id="p0")),
    ("line 2: id is 7.5; the rule is text or a number", lambda r: r.update(id=7.5)),
    ("line 2: concept is 7; the rule is text", lambda r: r.update(concept=7)),
    ("line 2: concept is ''; the rule is text that", lambda r: r.update(concept="")),
    (r"line 2: captions is \{'en': 'a \\ud800'\}, with half", lambda r: r.update(captions={"en": "a \ud800"})),
    (r"line 2: id is '\\ud800', with half a character", lambda r: r.update(id="\ud800")),
    (r"line 2: concept is '\\ud800', with half a character", lambda r: r.update(concept="\ud800")),
    (r"line 2: image '\\udcff' does not exist \(looked for .*\\udcff", lambda r: r.update(image="\udcff")),
    (r"line 2: image 'all\.jsonl' cannot be used: its format is unknown", lambda r: r.update(image="all.jsonl")),
]


@pytest.mark.parametrize(("reason", "spoil"), SPOILED, ids=[reason[:40] for reason, _ in SPOILED])
def test_names_line_field_value_and_rule(corpus: Corpus, reason: str, spoil: Callable[[Record], Any]) -> None:
    assert isinstance(corpus.records[1], dict)
    spoil(corpus.records[1])
    with pytest.raises(UserError, match=f"(?s)1 mistakes in 1 records.*{reason}.*Nothing was written.*--skip-bad"):
        corpus.prepare()
    assert not (corpus.folder / "output").exists()
    assert len(corpus.prepare(skip_bad=True)) == 2


@pytest.mark.parametrize("number", [0, 1, 2], ids=["jpeg", "png", "webp"])
def test_a_picture_is_read_to_its_end(corpus: Corpus, number: int) -> None:
    record = corpus.records[number]
    assert isinstance(record, dict)
    path = corpus.folder / record["image"]
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    corpus.prepare()
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=f"line {number + 1}: image .* cannot be used: .*(unreadable|decoder)"):
        corpus.prepare(overwrite=True)


def test_a_record_that_is_skipped_spoils_no_other(corpus: Corpus) -> None:
    good = corpus.records[0]
    assert isinstance(good, dict)
    corpus.write_regions("bad", features=np.ones((2, 9)))
    corpus.records = [good | {"image": "none.jpg"}, good | {"id": "bad", "captions": {}}, *corpus.records]
    assert len(corpus.prepare(skip_bad=True, regions=corpus.regions)) == 3


@pytest.mark.parametrize(
    ("reason", "arrays"),
    [
        ("no array features", {"features": None}),
        (r"features have shape \(2,\)", {"features": np.ones(2)}),
        (r"features have shape \(0, 6\)", {"features": np.ones((0, 6))}),
        ("hold NaN", {"features": np.full((2, 6), np.nan)}),
        ("too large for float16", {"features": np.full((2, 6), 1e5)}),
        ("features are 5 wide, those of 'p0.npz' 6", {"features": np.ones((2, 5))}),
        (r"boxes have shape \(3, 4\); the rule is \[2, 4\]", {"boxes": np.ones((3, 4))}),
        (r"boxes run from 0 to 48; the rule is 0\.\.1", {"boxes": np.full((2, 4), 48.0)}),
        (r"class_ids have shape \(3, 3\)", {"class_ids": np.ones((3, 3), np.int64)}),
        ("class_ids are float64", {"class_ids": np.ones((2, 3))}),
        (r"class_probs have shape \(2, 2\)", {"class_probs": np.ones((2, 2))}),
        ("class_probs run from 0 to 3", {"class_probs": np.full((2, 3), 3.0)}),
        ("class_ids must be there too", {"class_ids": None}),
        ("cannot be used", {"features": np.array([[{"pickled": 1}]], object)}),
    ],
)
def test_names_wrong_regions(corpus: Corpus, reason: str, arrays: dict[str, Any]) -> None:
    corpus.write_regions("p1", **arrays)
    with pytest.raises(UserError, match=rf"line 2: regions 'p1\.npz': .*{reason}"):
        corpus.prepare(regions=corpus.regions)


def test_names_missing_and_broken_region_files(corpus: Corpus) -> None:
    (corpus.regions / "p0.npz").unlink()
    (corpus.regions / "p1.npz").write_bytes((corpus.regions / "p2.npz").read_bytes()[:100])
    assert isinstance(corpus.records[2], dict)
    corpus.records[2]["id"] = "../p2"
    with pytest.raises(UserError, match=r"(?s)line 1:.*does not exist.*line 2:.*cannot be used.*line 3:.*slashes"):
        corpus.prepare(regions=corpus.regions)


def test_reports_all_mistakes_at_once_but_lists_twenty(corpus: Corpus) -> None:
    corpus.records = ["{broken", "[]", *[{"id": f"x{n}", "image": "none.jpg", "captions": {}} for n in range(15)]]
    with pytest.raises(UserError) as caught:
        corpus.prepare()
    message = str(caught.value)
    assert "32 mistakes in 17 records" in message
    assert "line 1: broken JSON" in message
    assert "line 2: the record is list" in message
    assert message.count("  line ") == 20
    assert "... and 12 more" in message


@pytest.mark.parametrize("line", ["image,caption", '"image","caption"', "\ufefffilepath\ttitle"])
def test_a_table_is_refused_once_with_the_command_that_reads_it(corpus: Corpus, line: str) -> None:
    corpus.records = [line, *["p0.png,a dog"] * 30]
    with pytest.raises(UserError, match=r"line 1: columns .*m3p prepare open-clip FILE"):
        corpus.prepare(skip_bad=True)


def test_skipping_all_is_an_error(corpus: Corpus) -> None:
    corpus.records = ["{broken"]
    with pytest.raises(UserError, match="no usable record"):
        corpus.prepare(skip_bad=True)
    assert not (corpus.folder / "output").exists()


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        prepare_captions(tmp_path / "none.jsonl", tmp_path / "output")
    (tmp_path / "a.jsonl").touch()
    options = Options(PictureFolder(tmp_path), regions=tmp_path / "none")
    with pytest.raises(UserError, match="--regions"):
        prepare_captions(tmp_path / "a.jsonl", tmp_path / "output", options)


@pytest.mark.parametrize("language", [True, None, 7, ("de",)])
def test_languages_that_are_no_text_are_named(language: Any) -> None:
    (found,) = caption_mistakes({language: "a dog"})
    assert "is no language tag" in found


@pytest.mark.parametrize(("one", "other"), [("EN", "en"), ("pt-br", "pt-BR"), ("zh-hant", "zh-Hant")])
def test_one_language_has_one_name(one: str, other: str) -> None:
    (found,) = caption_mistakes({one: "a dog", other: "dogs", "de": "Hund"})
    assert found == f"caption languages {one!r} and {other!r} are one language; put their captions in one list"


def test_right_captions_have_no_mistakes() -> None:
    assert caption_mistakes({"en": "a dog", "zh-Hant": ["狗", "一隻狗"]}) == []


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"captions": ["a dog", "the dog"]}, {"en": ["a dog", "the dog"]}),
        ({"captions": "a dog"}, {"en": ["a dog"]}),
        ({"caption": "a dog", "caption_de": "ein Hund"}, {"de": ["ein Hund"], "en": ["a dog"]}),
        ({"de": ["ein Hund"], "fr": ["un chien"]}, {"de": ["ein Hund"], "fr": ["un chien"]}),
    ],
)
def test_captions_in_the_layouts_that_shards_have(
    corpus: Corpus, fields: Record, captions: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.records = [{"id": 17, "image": "0.jpeg", "source": "x", **fields}]
    (sample,) = corpus.prepare(language="en")
    assert json.loads(sample["json"]) == {"id": "17", "captions": captions}
    assert "fields that are not kept: source (1)" in capsys.readouterr().out


def test_captions_without_a_language_are_a_mistake_unless_it_is_given(corpus: Corpus) -> None:
    corpus.records = [{"id": "a", "image": "0.jpeg", "captions": ["a dog"]}]
    with pytest.raises(UserError, match=r"captions are \['a dog'\]; the rule is .* --language"):
        corpus.prepare()


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/dev/zero", r"it is outside of .*give the folder of the pictures with --images"),
        ("../outside.png", r"it is outside of .*--images"),
        ("inside/../../outside.png", r"it is outside of"),
        ("link.png", r"it is a link that leads out of .*outside\.png: allow that with --follow-links"),
        ("linked/outside.png", "it is a link that leads out of"),
        ("pipe", "it is no regular file"),
        ("inside", "it is no regular file"),
        ("loop", "cannot be used"),
        ("large.png", "it has more than 536,870,912 bytes"),
    ],
)
def test_pictures_are_regular_files_of_their_folder(corpus: Corpus, image: str, reason: str) -> None:
    outside = corpus.folder.parent / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    (corpus.folder / "inside").mkdir()
    (corpus.folder / "link.png").symlink_to(outside)
    (corpus.folder / "linked").symlink_to(corpus.folder.parent)
    (corpus.folder / "loop").symlink_to(corpus.folder / "loop")
    os.mkfifo(corpus.folder / "pipe")
    with (corpus.folder / "large.png").open("wb") as file:
        file.truncate(512 * 2**20 + 1)
    corpus.records = [{"id": "a", "image": image, "captions": {"en": "a dog"}}]
    with pytest.raises(UserError, match=f"(?s)line 1: image .* cannot be used: .*{reason}|{reason}"):
        corpus.prepare()


def test_regions_of_one_name_are_not_those_of_two_pictures(corpus: Corpus) -> None:
    for folder, colour in (("train", "red"), ("dev", "blue")):
        (corpus.folder / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(corpus.folder / folder / "x.png")
    corpus.write_regions("x")
    records: list[Record] = [
        {"id": identity, "image": f"{folder}/x.png", "captions": {"en": "a dog"}}
        for identity, folder in (("a", "train"), ("again", "train"), ("b", "dev"))
    ]
    corpus.records = [*records]
    with pytest.raises(
        UserError, match=r"1 mistakes .*\n  line 3: regions 'x.npz' are those of line 1, .* name them by the ids"
    ):
        corpus.prepare(regions=corpus.regions)
    corpus.records = [*({**record, "captions": {}} for record in records[:2]), records[2]]
    assert len(corpus.prepare(regions=corpus.regions, skip_bad=True)) == 1
    corpus.records = [*records]
    for identity in ("a", "again", "b"):
        corpus.write_regions(identity)
    assert len(corpus.prepare(regions=corpus.regions, overwrite=True)) == 3


def test_the_ways_out_work(corpus: Corpus) -> None:
    elsewhere = corpus.folder.parent / f"{corpus.folder.name}-pictures"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8)).save(elsewhere / "a.png")
    (corpus.folder / "link.png").symlink_to(elsewhere / "a.png")
    source = corpus.folder / "some.jsonl"
    for image, pictures in (
        (str(elsewhere / "a.png"), PictureFolder(elsewhere)),
        ("a.png", PictureFolder(elsewhere)),
        ("a.png", PictureFolder(corpus.folder / ".." / elsewhere.name)),
        ("link.png", PictureFolder(corpus.folder, follow_links=True)),
    ):
        source.write_text(json.dumps({"id": "a", "image": image, "captions": {"en": "a dog"}}) + "\n")
        manifest, bad = prepare_captions(source, corpus.folder / "out", Options(pictures, overwrite=True))
        assert (manifest.samples, bad) == (1, {})
    source.write_text(json.dumps({"id": "a", "image": "../some.jsonl", "captions": {"en": "a dog"}}) + "\n")
    with pytest.raises(UserError, match="it is outside of"):
        prepare_captions(source, corpus.folder / "out", Options(PictureFolder(corpus.folder, True), overwrite=True))


def test_captions_that_show_nothing_and_values_without_end(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    texts = ["a dog", "\u200b", "a\0b", {"x" * 10**6: "y"}]
    records = [{"id": f"{number}", "image": "a.png", "captions": {"en": text}} for number, text in enumerate(texts)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match="3 mistakes in 3 records") as caught:
        prepare_captions(tmp_path / "x.jsonl", tmp_path / "out")
    assert str(caught.value).count("none empty or with characters of 0") == 3
    assert len(str(caught.value)) < 2500
