"""The objectives: streams of samples with their tasks. To add one, write its file and its line in `OBJECTIVES`."""

from trainer.objectives.code_switched import CodeSwitchedConfig
from trainer.objectives.image_caption import ImageCaptionConfig
from trainer.objectives.multilingual_text import MultilingualTextConfig
from trainer.objectives.objective import ObjectiveConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "multilingual_text": MultilingualTextConfig,
    "image_caption": ImageCaptionConfig,
    "code_switched": CodeSwitchedConfig,
}
