import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.errors import UserError
from m3p.prepare.dictionary import MAX_WORDS, clean, prepare_dictionary, read_rows, tidy

WORDS = st.text(st.sampled_from("aAbBé 1.-"), max_size=8)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=30))
def test_every_pair_is_kept_or_counted(pairs: list[tuple[str, str]]) -> None:
    found = clean(pairs)
    assert found.pairs + sum(found.dropped.values()) == len(pairs)
    assert list(found.translations) == sorted(found.translations)
    for word, targets in found.translations.items():
        assert word == word.casefold()
        assert " " not in word
        assert len(set(targets)) == len(targets) > 0
        assert word not in targets
        assert all(len(target.split()) <= MAX_WORDS for target in targets)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=30))
def test_cleaning_twice_changes_nothing(pairs: list[tuple[str, str]]) -> None:
    once = clean(pairs)
    again = clean((word, target) for word, targets in once.translations.items() for target in targets)
    assert again.translations == once.translations


@pytest.mark.parametrize(
    ("word", "translation", "reason"),
    [
        ("a", "Ais", "function word"),
        ("radio", "radio", "identity"),
        ("hot dog", "Würstchen", "source of several words"),
        ("swim", "sich im Wasser fort bewegen", "translation longer than 4 words"),
        ("24", "Hund", "source without letters"),
        ("dog", "...", "translation without letters"),
    ],
)
def test_drops(word: str, translation: str, reason: str) -> None:
    found = clean([(word, translation), ("house", "Haus")])
    assert dict(found.dropped) == {reason: 1}
    assert found.translations == {"house": ["Haus"]}


def test_keeps_the_order_of_translations_and_words_of_place() -> None:
    found = clean([("Dog", "Köter"), ("dog", "Hund"), ("dog", "Köter"), ("ring", "Ring"), ("above", "über")])
    assert found.translations == {"above": ["über"], "dog": ["Köter", "Hund"], "ring": ["Ring"]}
    assert dict(found.dropped) == {"duplicate": 1}


def test_drops_english_glosses_only_where_letters_are_not_latin() -> None:
    assert clean([("dog", "犬"), ("dog", "animal"), ("cat", "猫")]).translations == {"cat": ["猫"], "dog": ["犬"]}
    assert clean([("dog", "kůň"), ("dog", "pes")]).translations == {"dog": ["kůň", "pes"]}


def test_keeps_function_words_on_request() -> None:
    assert clean([("of", "von")], keep_function_words=True).translations == {"of": ["von"]}


@pytest.mark.parametrize(("raw", "tidied"), [("a. větší", "větší"), ("II.    lewy", "lewy"), (" e\u0301t ", "ét")])
def test_tidies_translations(raw: str, tidied: str) -> None:
    assert tidy(raw) == tidied


def test_writes_lists_and_summary(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    (raw / "en-de.tsv").write_text("tree\tBaum\nhot dog\tWurst\ndog\tdeutsche Dogge\nthe\tdie\n", encoding="utf-8")
    (raw / "en-fr.txt").write_text("dog chien\n\ndog clébard\n", encoding="utf-8")
    prepare_dictionary(raw, output)
    assert (output / "en-de.tsv").read_text(encoding="utf-8") == "dog\tdeutsche Dogge\ntree\tBaum\n"
    assert (output / "en-fr.tsv").read_text(encoding="utf-8") == "dog\tchien\ndog\tclébard\n"
    assert json.loads((output / "dictionary.json").read_text()) == {
        "source": "en",
        "languages": {"de": {"words": 2, "pairs": 2}, "fr": {"words": 1, "pairs": 2}},
        "dropped": {"de": {"function word": 1, "source of several words": 1}, "fr": {}},
    }


def test_mistakes_are_named(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "output"
    raw.mkdir()
    with pytest.raises(UserError, match=r"holds no en-LANG\.tsv"):
        prepare_dictionary(raw, output)
    (raw / "en-de.tsv").write_text("a\tAis\n")
    with pytest.raises(UserError, match=r"word list of de is empty after cleaning.*function word"):
        prepare_dictionary(raw, output)
    (raw / "en-de.txt").write_text("dog Hund\n")
    with pytest.raises(UserError, match=r"en-de as \.tsv and as \.txt"):
        prepare_dictionary(raw, output)
    (raw / "en-de.tsv").unlink()
    (raw / "en-my language.txt").write_text("dog Hund\n")
    with pytest.raises(UserError, match="'my language' is no language tag"):
        prepare_dictionary(raw, output)
    (raw / "en-my language.txt").unlink()
    (raw / "en-fr.tsv").mkdir()
    with pytest.raises(UserError, match=r"en-fr\.tsv is no file"):
        prepare_dictionary(raw, output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"dog Hund\ncat\n", "line 2: 'cat' is one word"), (b"\xff\n", "line 1")]
)
def test_names_the_broken_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "en-de.txt").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_rows(tmp_path / "en-de.txt")


@pytest.mark.parametrize(
    ("lines", "translations", "columns"),
    [
        (["dog\tHund\t0.83", "cat\tKatze\t1"], ["Hund", "Katze"], 2),
        (["dog\tpes\tnoun\tx", "cat\tkočka"], ["pes", "kočka"], 1),
        (["dog chien 0.9000000", "cat chat 8e-1 0,25"], ["chien", "chat"], 2),
        (["dog chien noun", "cat chat n.", "run courir (v)"], ["chien", "chat", "courir"], 3),
        (["hot dog\tein Hund", "cat\teine Katze"], ["ein Hund", "eine Katze"], 0),
        (["cat gato a", "tree arbol n", "dog perro del barrio", "sun sol", "sea mar"], ["gato a", "arbol n"], 0),
        (["seven 7", "dog\tHund\t"], ["7", "Hund"], 0),
    ],
    ids=[
        "scores",
        "parts of speech",
        "scores after spaces",
        "parts of speech after spaces",
        "words",
        "a few",
        "two columns",
    ],
)
def test_a_third_column_is_no_part_of_the_translation(
    tmp_path: Path, lines: list[str], translations: list[str], columns: int
) -> None:
    (tmp_path / "en-xx.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [translation for _, translation, _ in read_rows(tmp_path / "en-xx.txt")]
    assert found[: len(translations)] == translations
    if translations != ["7", "Hund"]:
        assert prepare_dictionary(tmp_path, tmp_path / "out")["xx"].columns == columns


def test_the_folder_that_muse_fills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in ("de", "fr"):
        (tmp_path / f"en-{code}.txt").write_text("dog Hund\ncat Katze\n")
        for part in ("0-5000", "5000-6500"):
            (tmp_path / f"en-{code}.{part}.txt").write_text("dog falsch\n")
        (tmp_path / f"{code}-en.txt").write_text("Hund dog\n")
    (tmp_path / "en-cs.txt.gz").write_bytes(gzip.compress(b"dog pes\n"))
    found = prepare_dictionary(tmp_path, tmp_path / "out")
    assert {language: words.translations["dog"] for language, words in found.items()} == {
        "cs": ["pes"], "de": ["Hund"], "fr": ["Hund"]
    }  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "passed over en-de.0-5000.txt, en-de.5000-6500.txt, en-fr.0-5000.txt" in said[0]
    assert "not read: de-en.txt, fr-en.txt" in said[1]


def test_parts_alone_and_one_list_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "en-de.0-5000.txt").write_text("dog Hund\n")
    with pytest.raises(UserError, match=r"holds only parts of lists, such as en-de\.0-5000\.txt: rename"):
        prepare_dictionary(tmp_path, tmp_path / "out")
    (tmp_path / "en-de.txt").write_text("dog Hund\n")
    (tmp_path / "en-de.txt.xz").write_bytes(lzma.compress(b"dog Hund\n"))
    with pytest.raises(UserError, match=r"holds en-de\.txt and en-de\.txt\.xz: they are one list; keep one"):
        prepare_dictionary(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "line",
    ['"dog"\t"Hund"', "dog ||| Hund ||| 0.3 0.2", "dog|||Hund", "dog\tHund\tnoun", "dog Hund 0.3", " dog \t Hund "],
)
def test_a_pair_in_the_layout_of_another_program_is_the_pair(tmp_path: Path, line: str) -> None:
    (tmp_path / "en-de.txt").write_text(line + "\n")
    assert [row[:2] for row in read_rows(tmp_path / "en-de.txt")] == [("dog", "Hund")]


NOTES = ["Hund {m}", "Hund [zool.]", "<b>Hund</b>", "Hund (pl. Hunde)", "犬（動物）"]
SEVERAL = ["Hund; Rüde", "Hund | Rüde", "Hund, Hunde / Rüde", "Hund/Rüde", "كلب، كلبة", "狗，犬", "犬、狗", "狗；犬"]


@pytest.mark.parametrize("translation", [*NOTES, *SEVERAL])
def test_notes_and_lists_of_translations_are_dropped_and_counted(translation: str) -> None:
    found = clean([("dog", translation), ("cat", "Katze")])
    assert found.translations == {"cat": ["Katze"]}
    assert sum(found.dropped.values()) == 1


@pytest.mark.parametrize("line", ["eng\t{0}\tdeu\t{1}", "{0}\teng\t{1}\tdeu"])
def test_columns_of_codes_are_no_words(tmp_path: Path, line: str) -> None:
    pairs = [("dog", "Hund"), ("cat", "Katze"), ("house", "Haus"), ("tree", "Baum")]
    (tmp_path / "en-de.tsv").write_text("".join(line.format(*pair) + "\n" for pair in pairs))
    with pytest.raises(UserError, match=r"are 'eng' in all 4 lines, and more columns follow"):
        prepare_dictionary(tmp_path, tmp_path / "output")
    (tmp_path / "en-de.tsv").write_text("".join(f"{word}\t{translation}\tnoun\n" for word, translation in pairs))
    assert prepare_dictionary(tmp_path, tmp_path / "output")["de"].pairs == 4
