import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m3p.errors import UserError
from m3p.keys import draws
from m3p.objectives import switching
from m3p.objectives.switching import CodeSwitcher, SwitchingConfig

LISTS = {
    "de": "dog\tHund\ndogs\tHunde\nDog\tKöter\ncat\tKatze\nradio\tRadio\nis\tist\nred\trot\nred\trot\nt-shirt\tT-Trikot\n",
    "fr": "dog\tchien\nred\trouge\n",
    "ja": "dog\t犬\ncat\t猫\nred\t赤い\nmotel\tmotel inn\n",
    "zh": "dog\t狗\ncat\t猫\n",
    "th": "cat\tแมว\n",
    "tr": "dog\tit\nred\tişaret\n",
}


def write(folder: Path, lists: dict[str, str]) -> Path:
    for language, text in lists.items():
        (folder / f"en-{language}.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("dictionary"), LISTS)


def switcher(folder: Path, *languages: str, **settings: object) -> CodeSwitcher:
    values = {"dictionary": folder, "languages": languages or None, "word_rate": 1.0, **settings}
    return CodeSwitcher(SwitchingConfig.model_validate(values))


def switched(folder: Path, caption: str, *languages: str) -> str:
    """Switch every word that can be; with one language and one translation a word, nothing is left to chance."""
    return switcher(folder, *languages).switch(caption, draws("any")).text


@pytest.mark.parametrize(
    ("caption", "language", "expected"),
    [
        ("a cat, (dog) and “red” cats!", "fr", "a cat, (chien) and “rouge” cats!"),
        ("a  dog\tnear\n a dog's dog. ", "fr", "a  chien\tnear\n a chien chien. "),
        ("DOG/cat—red", "fr", "Chien/cat—rouge"),
        ("A T-shirt, dogs-red", "de", "A T-Trikot, dogs-red"),
        ("The cats sat", "de", "The Katze sat"),
        ("dogs and a dogma", "fr", "chien and a dogma"),
        ("Red dog. Red! “Red Red", "fr", "Rouge chien. Rouge! “Rouge rouge"),
        ("Dog red", "tr", "İt işaret"),
        ("10 - … ☃", "de", "10 - … ☃"),
        ("", "de", ""),
    ],
)
def test_words_are_found_and_everything_else_stays(folder: Path, caption: str, language: str, expected: str) -> None:
    assert switched(folder, caption, language) == expected


def test_a_form_that_is_listed_goes_before_its_lemma(folder: Path) -> None:
    assert switched(folder, "dogs", "de") == "Hunde"
    assert switched(folder, "dogs", "ja") == "犬"
    forms = Counter(switcher(folder).switch("dogs", draws(i)).text for i in range(300))
    assert set(forms) == {"Hunde", "chien", "犬", "狗", "it"}


@pytest.mark.parametrize(
    ("caption", "languages", "expected"),
    [
        ("a red dog runs", ("ja",), "a 赤い犬 runs"),
        ("red cat dog cat", ("ja",), "赤い猫犬猫"),
        ("red, dog (cat)", ("ja",), "赤い, 犬 (猫)"),
        ("dog/cat", ("zh",), "狗/猫"),
        ("dog motel dog", ("ja",), "犬 motel inn 犬"),
        ("red dog", ("fr",), "rouge chien"),
        ("Cat cat", ("th",), "แมวแมว"),
    ],
)
def test_neighbours_without_spaces_are_joined(
    folder: Path, caption: str, languages: tuple[str, ...], expected: str
) -> None:
    assert switched(folder, caption, *languages) == expected


def test_a_border_between_two_languages_without_spaces_keeps_its_space(folder: Path) -> None:
    seen = {switcher(folder, "ja", "zh").switch("dog dog", draws(i)).text for i in range(40)}
    assert seen == {"犬犬", "狗狗", "犬 狗", "狗 犬"}


@given(
    caption=st.text() | st.lists(st.sampled_from(["dog", "Red,", "cats", "(cat", "the", "."])).map(" ".join),
    seed=st.integers(0, 99),
)
def test_what_comes_out_depends_on_caption_and_key_alone(folder: Path, caption: str, seed: int) -> None:
    used, fresh = switcher(folder, word_rate=0.5), switcher(folder, word_rate=0.5)
    for history in range(seed % 5):
        used.switch("dog cat red", draws(history))
    result = used.switch(caption, draws("sample", seed))
    assert result == fresh.switch(caption, draws("sample", seed))
    assert result == pickle.loads(pickle.dumps(used)).switch(caption, draws("sample", seed))
    assert result.switched == sum(result.languages.values()) <= result.found <= result.words
    if not result.switched:
        assert result.text == caption


def test_looked_up_tokens_are_forgotten_before_they_fill_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "TOKENS_KEPT", 2)
    small = switcher(folder, "fr")
    assert small.switch("the dog and a red dog", draws(1)).text == "the chien and a rouge chien"
    assert len(small._tokens) <= 2


def test_languages_that_list_a_word_then_translations_are_equally_likely(folder: Path) -> None:
    many = switcher(folder)
    results = [many.switch("dog", draws("draw", i)) for i in range(5_000)]
    words = Counter(result.text for result in results)
    languages = sum((Counter(result.languages) for result in results), Counter[str]())
    assert set(languages) == {"de", "fr", "ja", "tr", "zh"}
    assert sum((n - 1_000) ** 2 / 1_000 for n in languages.values()) < 20  # chi-square, 4 degrees of freedom
    assert abs(words["Hund"] - 500) < 100
    assert words["Hund"] + words["Köter"] == languages["de"]


@pytest.mark.long
@pytest.mark.parametrize(("sentence_rate", "word_rate"), [(1.0, 0.3), (0.4, 1.0), (0.5, 0.5)])
def test_rates(folder: Path, sentence_rate: float, word_rate: float) -> None:
    half = switcher(folder, sentence_rate=sentence_rate, word_rate=word_rate)
    results = [half.switch("a red cat and a dog", draws(i)) for i in range(3_000)]
    assert sum(r.switched for r in results) / sum(r.found for r in results) == pytest.approx(
        sentence_rate * word_rate, abs=0.03
    )
    untouched = 1 - sentence_rate + sentence_rate * (1 - word_rate) ** 3
    assert sum(r.switched == 0 for r in results) / 3_000 == pytest.approx(untouched, abs=0.04)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["per_word", "one_word"])
def test_rates_of_0_and_1_are_exact(folder: Path, mode: str) -> None:
    for i in range(200):
        never = switcher(folder, mode=mode, sentence_rate=0).switch("red cat dog", draws(i))
        assert (never.text, never.found, never.switched) == ("red cat dog", 3, 0)
        always = switcher(folder, mode=mode).switch("a red cat", draws(i))
        assert (always.words, always.found, always.switched) == (3, 2, 2 if mode == "per_word" else 1)
    assert switcher(folder, word_rate=0).switch("dog", draws(0)).text == "dog"


def test_one_word_mode_takes_each_word_that_is_found_equally_often(folder: Path) -> None:
    one = switcher(folder, "fr", mode="one_word", word_rate=0.0)
    texts = Counter(one.switch("the red dog dog", draws(i)).text for i in range(3_000))
    assert set(texts) == {"the rouge dog dog", "the red chien dog", "the red dog chien"}
    assert max(texts.values()) - min(texts.values()) < 200


def test_coverage_is_the_share_of_words_that_a_list_holds(folder: Path) -> None:
    coverage = switcher(folder).coverage(["A red dog!", "10 cats", ""])
    assert coverage == pytest.approx({"de": 0.75, "fr": 0.5, "ja": 0.75, "th": 0.25, "tr": 0.5, "zh": 0.5})


def test_pairs_of_equal_words_and_repeated_ones_are_left_out(folder: Path) -> None:
    german = switcher(folder, "de")
    assert german.switch("radio", draws(0)).found == 0
    assert german._lists["de"]["red"] == "rot"


@pytest.mark.parametrize(
    ("lists", "languages", "message"),
    [
        ({}, None, r"holds no word list \(en-LANG\.tsv\)"),
        ({"de": "dog\tHund\n"}, ["de", "cs"], r"no word list en-cs\.tsv for 'cs'. It has de"),
        ({"de": ""}, None, r"en-de\.tsv: no pair of different words"),
        ({"de": "Taxi\ttaxi\n"}, None, r"en-de\.tsv: no pair of different words"),
        ({"de": "dog\tHund\ncat Katze\n"}, None, r"en-de\.tsv, line 2: 'cat Katze' is not WORD<TAB>TRANSLATION"),
        ({"de": "dog\t\n"}, None, r"line 1: 'dog' is not WORD"),
        ({"de": "dog\tHund\tKöter\n"}, None, r"line 1: 'dog\\tHund\\tKöter' is not WORD"),
    ],
)
def test_a_broken_dictionary_is_one_clear_message(
    tmp_path: Path, lists: dict[str, str], languages: list[str] | None, message: str
) -> None:
    config = SwitchingConfig(dictionary=write(tmp_path, lists), languages=languages)
    with pytest.raises(UserError, match=message) as caught:
        CodeSwitcher(config)
    assert "m3p prepare dictionary" in str(caught.value)


def test_a_missing_folder_and_bytes_that_are_no_text_are_clear_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere.*m3p prepare dictionary"):
        CodeSwitcher(SwitchingConfig(dictionary=tmp_path / "nowhere"))
    (tmp_path / "en-de.tsv").write_bytes(b"dog\tK\xf6ter\n")
    with pytest.raises(UserError, match=r"en-de\.tsv: not UTF-8.*m3p prepare dictionary"):
        CodeSwitcher(SwitchingConfig(dictionary=tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"word_rate": 1.1},
        {"sentence_rate": -0.1},
        {"mode": "some"},
        {"languages": []},
        {"source_language": "ja"},
        {"beta": 1},
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SwitchingConfig.model_validate({"dictionary": "d", **values})


def test_a_source_language_without_lemmas_is_told_and_found_by_form_alone(tmp_path: Path) -> None:
    (tmp_path / "qq-de.tsv").write_text("dog\tHund\n", encoding="utf-8")
    plain = switcher(tmp_path, source_language="qq")
    assert not plain.has_lemmas
    assert plain.switch("dog dogs", draws(0)).text == "Hund dogs"


def test_words_in_scripts_with_vowel_signs_are_whole(tmp_path: Path) -> None:
    (tmp_path / "hi-de.tsv").write_text("बिल्ली\tKatze\n", encoding="utf-8")
    assert switcher(tmp_path, source_language="hi").switch("(बिल्ली)।", draws(0)).text == "(Katze)।"


@pytest.mark.parametrize("language", ["zh_TW", "ZH", "zho", "cmn", "yue", "wuu", "lzh", "nan", "jpn", "bo"])
def test_a_language_without_spaces_is_known_by_any_of_its_tags(tmp_path: Path, language: str) -> None:
    write(tmp_path, {language: "red\t红\ndog\t狗\n"})
    assert switched(tmp_path, "a red dog", language) == "a 红狗"
    with pytest.raises(ValidationError, match=f"captions in {language} are written without spaces"):
        SwitchingConfig.model_validate({"dictionary": tmp_path, "source_language": language})


def test_a_transcription_in_latin_letters_keeps_its_spaces(tmp_path: Path) -> None:
    write(tmp_path, {"zh-Latn": "red\thóng\ndog\tgǒu\n"})
    assert switched(tmp_path, "a red dog", "zh-Latn") == "a hóng gǒu"


def test_the_translations_of_a_word_are_those_of_every_list(folder: Path) -> None:
    found = switcher(folder, "de", "fr", "zh")
    assert found.translations("“Dog”,") == ("Hund", "Köter", "chien", "狗")
    assert found.translations("dogs") == ("Hunde", "chien", "狗"), "where a list lacks the form, by the lemma"
    assert found.translations("house") == ()
