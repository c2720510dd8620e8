"""The objectives: streams of samples with their tasks. `OBJECTIVES` holds all of them, by name.

To add one, write its file, with a subclass of `ObjectiveConfig` (its recipe fields, and what is asked of them without data)
and one of `Objective` (what it packs, and what is told of its samples), and its line in `OBJECTIVES`.

Arrows: objectives import tasks, tasks import the model; the model, data and visual sources import neither.
"""

from m3p.objectives.code_switched import CodeSwitchedConfig
from m3p.objectives.image_caption import ImageCaptionConfig
from m3p.objectives.multilingual_text import MultilingualTextConfig
from m3p.objectives.objective import ObjectiveConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "multilingual_text": MultilingualTextConfig,
    "image_caption": ImageCaptionConfig,
    "code_switched": CodeSwitchedConfig,
}
