"""Write the whole embedded data set: pictures, text, word lists and a vocabulary."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from m3p.errors import UserError
from m3p.keys import generator
from m3p.prepare.dictionary import clean, write_lists
from m3p.prepare.scenes.chinese import CHINESE
from m3p.prepare.scenes.czech import CZECH
from m3p.prepare.scenes.drawing import draw_scene
from m3p.prepare.scenes.english import ENGLISH
from m3p.prepare.scenes.french import FRENCH
from m3p.prepare.scenes.german import GERMAN
from m3p.prepare.scenes.japanese import JAPANESE
from m3p.prepare.scenes.language import Language
from m3p.prepare.scenes.scene import RELATIONS, THINGS, Scene, sample_scenes
from m3p.prepare.shards import ShardWriter
from m3p.prepare.staging import check_output, staged_folder
from m3p.prepare.tokenizer import train_tokenizer
from m3p.terminal import one_line

LANGUAGES: tuple[Language, ...] = (ENGLISH, GERMAN, FRENCH, CZECH, JAPANESE, CHINESE)

MARKER = "train/manifest.json"
SENTENCES = 600
"""Different monolingual sentences of each language."""
VOCABULARY = 800
"""Pieces: enough for nearly every form of these few words to be one. BPE, because sentencepiece's unigram never takes a
word that the text has in a single form, such as "small", as a piece."""
ORIGIN = {"set": "scenes", "caption_source": "written by the program", "captions_per_picture": "1"}
"""What the manifests of the pictures say of them."""
SAMPLES_PER_SHARD = 500
"""Small, so that even this data set has several shards to shuffle and to share out."""


@dataclass(frozen=True)
class Scenes:
    """What was written."""

    train: int
    held_out: int
    sentences: int
    words: int
    pieces: int


def prepare_scenes(
    output: Path, train: int = 4000, held_out: int = 100, seed: int = 0, size: int = 48, overwrite: bool = False
) -> Scenes:
    """Write `output`/{train,dev,text/LANG,dictionary,tokenizer}; the same arguments give the same bytes.

    `size` is the side of a picture in pixels. No picture of `dev` is in `train`, whichever side it is described from.
    Raises UserError.
    """
    check_output(output, MARKER, overwrite)
    if size < 16:
        raise UserError(f"--size {size}: the shapes cannot be told apart below 16 pixels.")
    training, development = sample_scenes(seed, train, held_out)
    with staged_folder(output, MARKER, overwrite) as folder:
        _write_pictures(folder / "train", training, seed, size)
        _write_pictures(folder / "dev", development, seed, size)
        text = {language.code: list(monolingual(language, seed)) for language in LANGUAGES}
        for code, sentences in text.items():
            with ShardWriter(folder / "text" / code, "text", SAMPLES_PER_SHARD, language=code) as writer:
                for sentence in sentences:
                    writer.write({"txt": sentence.encode()})
        (folder / "dictionary").mkdir()
        lists = {
            language.code: clean(
                ((word, form) for word, forms in language.words.items() for form in forms), keep_function_words=True
            )
            for language in LANGUAGES
            if language is not ENGLISH
        }
        write_lists(folder / "dictionary", lists)
        (folder / "tokenizer").mkdir()
        vocabulary_text = _vocabulary_text(text, training)
        pieces = train_tokenizer(vocabulary_text, folder / "tokenizer", VOCABULARY, "bpe", split_cjk=True)
    return Scenes(
        train=len(training),
        held_out=len(development),
        sentences=sum(len(sentences) for sentences in text.values()),
        words=sum(words.pairs for words in lists.values()),
        pieces=pieces,
    )


def _write_pictures(folder: Path, scenes: list[Scene], seed: int, size: int) -> None:
    with ShardWriter(folder, "captions", SAMPLES_PER_SHARD, origin=ORIGIN | {"split": folder.name}) as writer:
        for number, scene in enumerate(tqdm(scenes, desc=one_line(f"draw {folder.name}"), unit="scene", disable=None)):
            record = {
                "id": f"{folder.name}-{number:05d}",
                "captions": {language.code: [language.caption(scene)] for language in LANGUAGES},
            }
            image = draw_scene(scene, size, generator("scenes", seed, folder.name, number))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.write({"png": buffer.getvalue(), "json": json.dumps(record, ensure_ascii=False).encode()})


def monolingual(language: Language, seed: int) -> Iterator[str]:
    """Yield SENTENCES different sentences, drawn for each language on its own: they are no translations."""
    random = generator("scenes", seed, "text", language.code)
    seen: set[str] = set()
    while len(seen) < SENTENCES:
        pattern = language.sentences[random.integers(len(language.sentences))]
        first, second = (THINGS[i] for i in random.integers(len(THINGS), size=2))
        sentence = pattern(first, second, RELATIONS[random.integers(len(RELATIONS))])
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _vocabulary_text(text: dict[str, list[str]], training: list[Scene]) -> Iterator[str]:
    """Yield what training itself will see: text, as many English captions, and the word lists; no other caption."""
    for sentences in text.values():
        yield from sentences
    for scene in training[:SENTENCES]:
        yield ENGLISH.caption(scene)
    for language in LANGUAGES:
        for forms in language.words.values():
            yield from forms
