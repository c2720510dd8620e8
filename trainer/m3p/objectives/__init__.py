"""The objectives: streams of samples with their tasks. To add one, write its file and its line in `OBJECTIVES`."""

from m3p.objectives.code_switched import CodeSwitchedConfig
from m3p.objectives.image_caption import ImageCaptionConfig
from m3p.objectives.multilingual_text import MultilingualTextConfig
from m3p.objectives.objective import ObjectiveConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "multilingual_text": MultilingualTextConfig,
    "image_caption": ImageCaptionConfig,
    "code_switched": CodeSwitchedConfig,
}
