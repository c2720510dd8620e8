"""`code_switched`: pairs whose caption has words swapped for translations (M3P's MCT); tasks as in `image_caption`."""

from pydantic import Field

from trainer.batch import Packer
from trainer.data.source import Sample
from trainer.objectives.image_caption import ImageCaption, ImageCaptionConfig
from trainer.objectives.objective import Context
from trainer.objectives.switching import CodeSwitcher, SwitchingConfig


class CodeSwitchedConfig(ImageCaptionConfig):
    """Fields of `objectives.code_switched`."""

    switching: SwitchingConfig = Field(description="Dictionary, languages, mode and rates.")

    def build(self, context: Context) -> "CodeSwitched":
        """Return the objective."""
        return CodeSwitched(self, context)


class CodeSwitched(ImageCaption):
    """Switches every caption, of true and mismatched pairs alike, by the caption's own generator."""

    config: CodeSwitchedConfig

    def __init__(self, config: CodeSwitchedConfig, context: Context) -> None:
        super().__init__(config, context)
        self.switcher = CodeSwitcher(config.switching)

    def notes(self) -> list[str]:
        """Say which languages the word lists give, and whether words fall back to their lemma."""
        lemma = "with" if self.switcher.has_lemmas else "without"
        return [f"switches to {', '.join(self.switcher.languages)}, {lemma} lemmas"]

    def caption(self, sample: Sample, packer: Packer | None) -> str:
        """Choose the caption and switch it."""
        switched = self.switcher.switch(super().caption(sample, packer), sample.generator("switch"))
        if packer is not None:
            packer.count("switching/words", switched.words)
            packer.count("switching/found", switched.found)
            packer.count("switching/switched", switched.switched)
            for language, words in switched.languages.items():
                packer.count(f"switching/to_{language}", words)
        return switched.text
