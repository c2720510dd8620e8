"""Grammar: captions and sentences written out by hand, and what must hold of every caption."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3p.prepare.scenes.build import LANGUAGES, SENTENCES, monolingual
from m3p.prepare.scenes.language import Language
from m3p.prepare.scenes.scene import RELATIONS, THINGS, Relation, Scene, Thing

BY_CODE = {language.code: language for language in LANGUAGES}
SCENES = st.builds(Scene, st.sampled_from(THINGS), st.sampled_from(THINGS), st.sampled_from(RELATIONS))

RED_CIRCLE = Thing("large", "red", "circle")
BLUE_SQUARE = Thing("small", "blue", "square")
ORANGE_STAR = Thing("small", "orange", "star")
GREEN_DIAMOND = Thing("large", "green", "diamond")
BLACK_HEART = Thing("small", "black", "heart")
BROWN_CROSS = Thing("large", "brown", "cross")


@pytest.mark.parametrize(
    ("first", "relation", "second", "captions"),
    [
        (
            RED_CIRCLE,
            "left of",
            BLUE_SQUARE,
            {
                "en": "a large red circle left of a small blue square",
                "de": "ein großer roter Kreis links von einem kleinen blauen Quadrat",
                "fr": "un grand cercle rouge à gauche d'un petit carré bleu",
                "cs": "velký červený kruh vlevo od malého modrého čtverce",
                "ja": "小さな青い正方形の左にある大きな赤い円",
                "zh": "一个红色的大圆形在一个蓝色的小正方形的左边",
            },
        ),
        (
            ORANGE_STAR,
            "above",
            GREEN_DIAMOND,
            {
                "de": "ein kleiner orange Stern über einer großen grünen Raute",
                "fr": "une petite étoile orange au-dessus d'un grand losange vert",
                "cs": "malá oranžová hvězda nad velkým zeleným kosočtvercem",
                "ja": "大きな緑のひし形の上にある小さなオレンジ色の星",
                "zh": "一个橙色的小星形在一个绿色的大菱形的上方",
            },
        ),
        (
            BLACK_HEART,
            "below",
            ORANGE_STAR,
            {
                "de": "ein kleines schwarzes Herz unter einem kleinen orange Stern",
                "fr": "un petit cœur noir au-dessous d'une petite étoile orange",
                "cs": "malé černé srdce pod malou oranžovou hvězdou",
            },
        ),
        (
            BROWN_CROSS,
            "right of",
            BLACK_HEART,
            {
                "de": "ein großes braunes Kreuz rechts von einem kleinen schwarzen Herzen",
                "fr": "une grande croix brune à droite d'un petit cœur noir",
                "cs": "velký hnědý kříž vpravo od malého černého srdce",
            },
        ),
        (
            GREEN_DIAMOND,
            "right of",
            ORANGE_STAR,
            {
                "de": "eine große grüne Raute rechts von einem kleinen orange Stern",
                "cs": "velký zelený kosočtverec vpravo od malé oranžové hvězdy",
            },
        ),
    ],
)
def test_captions(first: Thing, relation: Relation, second: Thing, captions: dict[str, str]) -> None:
    scene = Scene(first, second, relation)
    assert {code: BY_CODE[code].caption(scene) for code in captions} == captions


@pytest.mark.parametrize(
    ("code", "sentences"),
    [
        (
            "en",
            [
                "The star is orange.",
                "I see a small orange star.",
                "Here is an orange star.",
                "There is an orange star and a black heart.",
                "Where is the small star?",
                "Above the heart is an orange star.",
            ],
        ),
        (
            "de",
            [
                "Der Stern ist orange.",
                "Ich sehe einen kleinen orange Stern.",
                "Hier ist ein orange Stern.",
                "Es gibt einen orange Stern und ein schwarzes Herz.",
                "Wo ist der kleine Stern?",
                "Über dem Herzen ist ein orange Stern.",
            ],
        ),
        (
            "fr",
            [
                "L'étoile est orange.",
                "Je vois une petite étoile orange.",
                "Voici une étoile orange.",
                "Il y a une étoile orange et un cœur noir.",
                "Où est la petite étoile ?",
                "Au-dessus du cœur, il y a une étoile orange.",
            ],
        ),
        (
            "cs",
            [
                "Hvězda je oranžová.",
                "Vidím malou oranžovou hvězdu.",
                "Tady je oranžová hvězda.",
                "Na obrázku je oranžová hvězda a černé srdce.",
                "Kde je malá hvězda?",
                "Nad srdcem je oranžová hvězda.",
            ],
        ),
        (
            "ja",
            [
                "星はオレンジ色だ。",
                "小さなオレンジ色の星が見える。",
                "ここにオレンジ色の星がある。",
                "オレンジ色の星と黒いハートがある。",
                "小さな星はどこにある？",
                "ハートの上にオレンジ色の星がある。",
            ],
        ),
        (
            "zh",
            [
                "星形是橙色的。",
                "我看到一个橙色的小星形。",
                "这里有一个橙色的星形。",
                "有一个橙色的星形和一个黑色的心形。",
                "小星形在哪里？",
                "心形的上方有一个橙色的星形。",
            ],
        ),
    ],
)
def test_sentences(code: str, sentences: list[str]) -> None:
    assert [pattern(ORANGE_STAR, BLACK_HEART, "above") for pattern in BY_CODE[code].sentences] == sentences


def test_elision() -> None:
    [*_, place] = BY_CODE["fr"].sentences
    assert place(RED_CIRCLE, ORANGE_STAR, "left of") == "À gauche de l'étoile, il y a un cercle rouge."
    assert place(RED_CIRCLE, BROWN_CROSS, "below") == "Au-dessous de la croix, il y a un cercle rouge."


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@given(one=SCENES, two=SCENES)
def test_different_scenes_have_different_captions(language: Language, one: Scene, two: Scene) -> None:
    assert (language.caption(one) == language.caption(two)) == (one == two)


@pytest.mark.parametrize("code", ["de", "fr", "cs"])
@given(scene=SCENES)
def test_the_word_list_gives_every_form_of_a_caption(code: str, scene: Scene) -> None:
    """Code-switching can show each word of each caption; with base forms only, recall stayed near chance."""
    forms = {word for targets in BY_CODE[code].words.values() for target in targets for word in target.split()}
    assert set(re.sub("d'(une?)", r"d'\1 ", BY_CODE[code].caption(scene)).split()) <= forms


@pytest.mark.parametrize("code", ["ja", "zh"])
@given(scene=SCENES)
def test_the_word_list_gives_every_word_of_an_unspaced_caption(code: str, scene: Scene) -> None:
    forms = sorted({target for targets in BY_CODE[code].words.values() for target in targets}, key=len, reverse=True)
    rest = re.sub("|".join(forms), "", BY_CODE[code].caption(scene))
    assert rest == {"ja": "にある", "zh": "在"}[code]


@pytest.mark.parametrize("language", LANGUAGES[1:], ids=lambda language: language.code)
def test_the_word_list_covers_the_words_of_english_captions(language: Language) -> None:
    words: set[str] = {word for thing in THINGS for word in (thing.size, thing.colour, thing.shape)}
    words |= {word for relation in RELATIONS for word in relation.split()}
    assert words <= set(language.words) <= words | {"a"}


@pytest.mark.long
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_monolingual_sentences_differ_and_are_no_captions(language: Language) -> None:
    sentences = list(monolingual(language, seed=0))
    assert len(set(sentences)) == len(sentences) == SENTENCES
    assert sentences == list(monolingual(language, seed=0)) != list(monolingual(language, seed=1))
    assert all(sentence[-1] in ".?。？" for sentence in sentences)
