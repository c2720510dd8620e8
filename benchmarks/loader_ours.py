"""Our side of `loader.py`: the trainer's own loader, on objectives that only pack, or on the real ones with their masks."""

from collections.abc import Iterator
from pathlib import Path

from m3p.batch import Batch
from m3p.data.loader.loader import DataConfig, MicroBatches, load
from m3p.data.order.plan import MicroBatchPlan, Plan, Stream
from m3p.data.tokenizer import Tokenizer
from m3p.objectives.image_caption import ImageCaption, ImageCaptionConfig
from m3p.objectives.multilingual_text import MultilingualText, MultilingualTextConfig
from m3p.objectives.objective import Context, Objective, Part, Read
from m3p.packing import Packer
from m3p.visual.patches import Patches

BATCH = 64
FOR_EVER = 10**9


class PlainText(MultilingualText):
    """Passages, tokenised and packed."""

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack passages."""
        packer.add_many(part.tokens, part.lengths)


class PlainPairs(ImageCaption):
    """Pictures with a caption, decoded, tokenised and packed."""

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack pairs."""
        packer.add_many(part.tokens, part.lengths, [sample.picture for sample in part.samples])


def start(kind: str, data: Path, workers: int, threads: int, first: int, masks: bool) -> Iterator[Batch]:
    """Return the micro-batches of 64 from number `first` on; each worker decodes in `threads`."""
    objective = _objective(kind, data, masks)
    plan = MicroBatchPlan(Plan([Stream(kind, 1, BATCH)], None), 1, 0, {kind: BATCH})
    return load(
        MicroBatches(plan, {kind: objective}),
        first,
        FOR_EVER,
        DataConfig(workers=workers, threads=threads),
        False,
        _nothing,
    )


def _nothing(worker: int) -> None:
    """A worker that needs no preparation."""


def _objective(kind: str, data: Path, masks: bool) -> Objective:
    tokenizer, sources = Tokenizer(data / "tokenizer"), [{"path": str(data / kind)}]
    if kind == "text":
        text = MultilingualTextConfig.model_validate({"batch_size": BATCH, "max_tokens": 128, "sources": sources})
        return (MultilingualText if masks else PlainText)(text, Context(kind, 0, tokenizer, None, 4))
    pairs = ImageCaptionConfig.model_validate({"batch_size": BATCH, "max_tokens": 128, "sources": sources})
    visual = Patches(kind="patches", size=224, patch=16)
    return (ImageCaption if masks else PlainPairs)(pairs, Context(kind, 0, tokenizer, visual, 4))
