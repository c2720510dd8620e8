"""`code_switched`: pairs whose caption has words swapped for translations (M3P's MCT); tasks as in `image_caption`."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from m3p.content_hash import hash_folder
from m3p.data.sample import BadSamples, Sample
from m3p.data.source import Source
from m3p.errors import UserError
from m3p.objectives.image_caption import ImageCaption, ImageCaptionConfig
from m3p.objectives.objective import Context, Text
from m3p.objectives.switching import CodeSwitcher, SwitchingConfig

COVERAGE_SAMPLES = 100
"""Samples whose captions are looked up for the coverage that is printed at start."""


class CodeSwitchedConfig(ImageCaptionConfig):
    """Fields of `objectives.code_switched`."""

    changes_texts: ClassVar[bool] = True

    switching: SwitchingConfig = Field(description="Dictionary, languages, mode and rates.")

    def build(self, context: Context) -> "CodeSwitched":
        """Return the objective."""
        return CodeSwitched(self, context)

    def check_files(self) -> None:
        """Raise UserError where a word list cannot be used."""
        CodeSwitcher(self.switching)

    def check_source(self, source: Source) -> None:
        """Raise UserError for a source that gives captions in another language than that of the word lists.

        "die" is an article in one language and a verb in the other.
        """
        language = self.switching.source_language
        if others := sorted(set(source.languages) - {language}):
            raise UserError(
                f"{source.folder}: has captions in {', '.join(others)}, and words are switched from {language} alone "
                f"(switching.source_language): set languages: [{language}] for this source"
            )


class CodeSwitched(ImageCaption):
    """Switches every caption, of true and mismatched pairs alike, by the sample's own draws."""

    config: CodeSwitchedConfig

    def __init__(self, config: CodeSwitchedConfig, context: Context) -> None:
        super().__init__(config, context)
        for source in self.mix.sources:
            config.check_source(source)
        self.switcher = CodeSwitcher(config.switching)

    def notes(self) -> list[str]:
        """Say which share of the captions' words each word list holds, and whether words fall back to their lemma."""
        lemma = "with" if self.switcher.has_lemmas else "without"
        samples = (self.mix.read(position, BadSamples([])) for position in range(COVERAGE_SAMPLES))
        captions = [text for sample in samples for texts in sample.captions.values() for text in texts]
        found = ", ".join(f"{code} {100 * share:.0f}" for code, share in self.switcher.coverage(captions).items())
        return [f"switches {lemma} lemmas; percent of words found: {found}"]

    def fingerprints(self) -> dict[str, str]:
        """Add the content of the word lists."""
        place = f"objectives.{self.context.name}.switching.dictionary"
        return {**super().fingerprints(), place: hash_folder(self.config.switching.dictionary)}

    def coverage(self, texts: Sequence[str]) -> dict[str, float]:
        """Return the share of the words of `texts` in each word list."""
        return self.switcher.coverage(texts)

    def text(self, sample: Sample) -> Text:
        """Switch the caption chosen."""
        switched = self.switcher.switch(self.choose(sample), sample.draws("switch"))
        counts = {
            "switching/words": switched.words,
            "switching/found": switched.found,
            "switching/switched": switched.switched,
            **{f"switching/to_{language}": words for language, words in switched.languages.items()},
        }
        return Text(switched.text, counts)
