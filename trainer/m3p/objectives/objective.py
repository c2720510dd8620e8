"""What every objective shares: its recipe fields, and how positions become packed micro-batches."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3p.batch import Allocate, Batch, allocate_nothing
from m3p.content_hash import hash_bytes
from m3p.data.kinds import TEXT, Kind
from m3p.data.loader.picture_buffer import PictureBuffer
from m3p.data.mix import Mix
from m3p.data.order.plan import MicroBatch, Turn
from m3p.data.sample import BadSamples, Sample
from m3p.data.samples import Samples
from m3p.data.source import Source, SourceConfig, find_folders
from m3p.data.storage.cache import Cache
from m3p.data.storage.folders import open_folder
from m3p.data.tokenizer import Tokenizer
from m3p.errors import UserError
from m3p.fields import MAY_CHANGE
from m3p.model.flops import Work
from m3p.objectives.segments import encode_segments
from m3p.objectives.tasks import TASKS
from m3p.packing import Packer
from m3p.visual.source import VisualSource

Ids = NDArray[np.int64]
Read = Callable[[int], Sample]


@dataclass(frozen=True)
class Context:
    """What an objective is built from besides its own fields."""

    name: str
    seed: int
    tokenizer: Tokenizer
    visual: VisualSource | None
    window: int
    """Shards whose samples are shuffled together."""
    cache: Cache | None = None
    """Where shards behind URLs are kept."""


class Text(NamedTuple):
    """A text as the network sees it."""

    text: str
    counts: Mapping[str, int] = MappingProxyType({})
    """What the monitor adds up: counter -> number."""
    more: tuple[str, ...] = ()
    """Further segments, each behind the one before: `<s> text </s></s> more </s>`, as XLM-R joins two sentences."""


class Tokens(NamedTuple):
    """The texts of N samples as tokens."""

    ids: Ids
    """[W] of all texts, end to end."""
    lengths: Ids
    """[N] tokens of each text."""
    counts: Mapping[int, Mapping[str, int]]
    """Number of a text -> what the monitor adds up for it; texts without anything to count are left out."""


class ShownText(NamedTuple):
    """The texts of a sample, as `m3p data peek` shows them."""

    captions: dict[str, list[str]]
    """Language -> its captions as stored; a passage under the language of its source."""
    chosen: str = ""
    """The caption that the network gets, as stored; "" where there is no choice."""
    seen: str = ""
    """The same as the network gets it: words may be switched."""


class Part(NamedTuple):
    """What a micro-batch is packed from: the samples at some positions of a turn, and their texts."""

    turn: range
    """Positions of the whole turn."""
    positions: Sequence[int]
    """[N], at least one: those of the turn that the micro-batch holds."""
    samples: Samples
    """[N], with their pictures."""
    tokens: Ids
    """[W] the tokens of their texts, end to end."""
    lengths: Ids
    """[N] tokens of each text."""


class ObjectiveConfig(BaseModel):
    """Fields of every objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    possible_tasks: ClassVar[tuple[str, ...]] = ()
    """Names of the tasks that it offers."""
    needs_pictures: ClassVar[bool] = False
    """Whether its samples have pictures."""
    changes_texts: ClassVar[bool] = False
    """Whether it shows another text each time that it shows a sample."""

    weight: float = Field(
        1,
        ge=0,
        allow_inf_nan=False,
        description="Turns of this objective in the round-robin, relative; 0 leaves it out.",
    )
    batch_size: int = Field(ge=1, description="Samples of one turn, over all ranks.")
    micro_batch: int = Field(
        64, ge=1, json_schema_extra=MAY_CHANGE, description="Most samples that a rank forwards at once."
    )
    sources: list[SourceConfig] = Field(min_length=1, description="Folders of shards.")
    temperature: float = Field(0.3, ge=0, le=1, description="Sources without weights share by size to this power.")
    tasks: dict[str, float] = Field(description="Weight of each task in the loss; 0 leaves it out.")
    max_tokens: int = Field(64, ge=4, description="Texts are cut to this many tokens, `<s>` and `</s>` counted.")

    @model_validator(mode="after")
    def _sane(self) -> "ObjectiveConfig":
        unknown = [task for task in self.tasks if task not in self.possible_tasks]
        if unknown:
            raise ValueError(f"tasks.{unknown[0]} does not exist here; possible: {', '.join(self.possible_tasks)}")
        if not all(0 <= weight < math.inf for weight in self.tasks.values()):
            raise ValueError(f"tasks = {self.tasks}: a weight is negative or no number; 0 leaves a task out")
        if self.weight > 0 and not self.active_tasks:
            raise ValueError("tasks are all 0: give one a weight, or set weight = 0 to leave the objective out")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("sources: some have a weight and some have none; give all of them one, or none")
        if any(source.weight and any(sign in source.path for sign in "*?[") for source in self.sources):
            raise ValueError("sources: a pattern of several folders takes no weight; name the folders one by one")
        return self

    @property
    def active_tasks(self) -> dict[str, float]:
        """Tasks with a weight above 0."""
        return {task: weight for task, weight in self.tasks.items() if weight > 0}

    @property
    def known_beforehand(self) -> bool:
        """Whether all micro-batches of a turn are known before the network sees any of them."""
        return True

    @classmethod
    def __pydantic_init_subclass__(cls, **named: Any) -> None:
        assert cls.needs_pictures or not any(TASKS[name].needs_pictures for name in cls.possible_tasks), cls

    def build(self, context: Context) -> "Objective":
        """Return the objective that these fields describe."""
        raise NotImplementedError

    def longest_sample(self, visual: VisualSource | None) -> Work:
        """Return the work of the longest sample there may be; `m3p plan` assumes it where the data is not here."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raise UserError where a file or folder that the fields name, beside the sources, cannot be used."""

    def check_source(self, source: Source) -> None:
        """Raise UserError where a source cannot be used with these fields."""


class Objective:
    """One of the streams: reads samples of its sources and packs them with what its tasks ask."""

    kind: ClassVar[Kind] = TEXT
    """What its sources hold."""

    def __init__(self, config: ObjectiveConfig, context: Context) -> None:
        self.config, self.context = config, context
        self.tasks: Mapping[str, float] = config.active_tasks
        load = context.visual.load if self.kind.has_pictures and context.visual else None
        augments = context.visual is not None and context.visual.augments
        sources: list[Source] = []
        weights: list[float | None] = []
        for number, entry in enumerate(config.sources):
            field = f"objectives.{context.name}.sources.{number}.path"
            for path in find_folders(entry.path, field):
                folder = open_folder(path, context.cache, field)
                owner = (context.seed, context.name, len(sources))
                sources.append(Source(folder, entry, owner, context.window, load, augments, self.kind))
                if load and context.visual:
                    manifest = sources[-1].manifest
                    context.visual.check_source(str(folder), manifest.region_features, manifest.without_picture)
                    context.visual.check_stored(str(folder), manifest.stored_tower)
                weights.append(entry.weight)
        stored = _are_stored(sources, context)
        self._buffer = PictureBuffer(context.visual.memory_shape if load and context.visual and not stored else None)
        self.mix = Mix(sources, weights, config.temperature)

    def costs(self, positions: range) -> NDArray[np.float64]:
        """Return roughly what each sample at `positions` [N] costs to train on, in tokens: [N]."""
        return self.mix.lengths(positions)

    def batches(self, parts: Sequence[MicroBatch], allocate: Allocate = allocate_nothing) -> Iterator[Batch]:
        """Pack the samples of several micro-batches, each some positions of its turn, into memory that `allocate` gives.

        All are read and tokenised before the first picture is decoded: decoding fills the processor's caches with pixels,
        and what Python does next is slower for it.
        """
        samples = self.mix.read_many([position for part in parts for position in part.positions])
        tokens = self.tokenise(samples)
        ends, first = [0, *tokens.lengths.cumsum().tolist()], 0
        for part in parts:
            last = first + len(part.positions)
            counts = {number - first: tokens.counts[number] for number in range(first, last) if number in tokens.counts}
            mine = Tokens(tokens.ids[ends[first] : ends[last]], tokens.lengths[first:last], counts)
            yield self._pack(part, samples[first:last], mine, allocate)
            first = last

    def batch(self, turn: range, positions: Sequence[int]) -> Batch:
        """Pack the samples at `positions`, some of the positions of `turn`: -> one micro-batch."""
        return next(self.batches([MicroBatch(Turn(0, self.context.name, 0, turn), 0, positions)]))

    def _pack(self, part: MicroBatch, samples: Samples, tokens: Tokens, allocate: Allocate) -> Batch:
        packer, positions, buffer = self.packer(allocate), part.positions, None
        if self.kind.has_pictures:
            buffer = self._buffer
            if self.mix.decode(samples, buffer.divide(len(samples), allocate)):
                tokens = self.tokenise(samples)
        packer.names = samples.names
        for counts in tokens.counts.values():
            for name, number in counts.items():
                packer.count(name, number)
        if positions:
            mine = Part(part.turn.positions, positions, samples, tokens.ids, tokens.lengths)
            self.add(packer, mine, self._reading(positions, samples))
        batch = packer.finish(len(positions), buffer)
        batch.bad = samples.messages
        return batch

    def _reading(self, positions: Sequence[int], samples: Samples) -> Read:
        """Return what gives the sample at a position of the turn: one of `samples` [N] at `positions` [N], or read anew."""
        known: dict[int, Sample] = {}

        def read(position: int) -> Sample:
            if not known:  # many objectives never ask
                known.update(zip(positions, samples, strict=True))
            if position not in known:  # a bad one is counted where it is packed
                known[position] = self.mix.read(position, BadSamples([]))
            return known[position]

        return read

    def tokenise(self, samples: Samples) -> Tokens:
        """Return the texts of `samples` [N] as tokens, cut to `max_tokens`."""
        texts = [self.text(sample) for sample in samples]
        return Tokens(*self.encode(texts), {number: text.counts for number, text in enumerate(texts) if text.counts})

    def encode(self, texts: Sequence[Text]) -> tuple[Ids, Ids]:
        """Return the tokens of `texts` [N] end to end [W], and how many each has [N], `max_tokens` at most."""
        tokenizer, limit = self.context.tokenizer, self.config.max_tokens
        if any(text.more for text in texts):
            return encode_segments([(text.text, *text.more) for text in texts], limit, tokenizer)
        return tokenizer.encode_flat([text.text for text in texts], limit)

    def packer(self, allocate: Allocate = allocate_nothing) -> Packer:
        """Return a new packer for one micro-batch, which packs into memory that `allocate` gives."""
        features = self.context.visual.features if self.context.visual else (1,)
        return Packer(*features, allocate=allocate)

    def notes(self) -> list[str]:
        """Lines for the table printed at start."""
        return []

    def fingerprints(self) -> dict[str, str]:
        """Return what a run must find as it was to go on from a checkpoint: recipe field, or what it is, -> hash or value."""
        found, place = dict[str, str](), f"objectives.{self.context.name}"
        for number, source in enumerate(self.mix.sources):
            shards = [(shard.samples, shard.fingerprint) for shard in source.manifest.shards]
            found[f"{place}.sources, folder {number}"] = hash_bytes(repr(shards).encode())
        for task in self.tasks:
            told = TASKS[task].fingerprints(len(self.mix.sources))
            found |= {f"{place}.tasks.{task}, {name}": value for name, value in told.items()}
        return found

    def show(self, sample: Sample) -> ShownText:
        """Return the texts of a sample to be shown."""
        return ShownText(dict(self.kind.texts(sample.record, sample.language)))

    def coverage(self, texts: Sequence[str]) -> dict[str, float]:
        """Return for each word list the share (0..1) of the words of `texts` that it holds; empty without word lists."""
        return {}

    def text(self, sample: Sample) -> Text:
        """Return the text of a sample as the network sees it. The same whoever asks for it."""
        raise NotImplementedError

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack the samples of `part`: their sequences, and what the tasks ask of them. `read` reads others of its turn."""
        raise NotImplementedError


def _are_stored(sources: Sequence[Source], context: Context) -> bool:
    """Say whether the sources have tokens of a tower instead of pictures.

    Raises UserError where only some have, or where pictures are to be changed.
    """
    stored = [source for source in sources if source.manifest.stored_tower is not None]
    if stored and len(stored) < len(sources):
        other = next(source for source in sources if source.manifest.stored_tower is None)
        raise UserError(
            f"objectives.{context.name}.sources: {stored[0].folder} has tokens of a tower and {other.folder} has pictures, which "
            "one micro-batch cannot hold; make the features of both (`m3p prepare features`), or name the pictures of both"
        )
    if stored and context.visual is not None and context.visual.augments:
        raise UserError(
            f"objectives.{context.name}.sources: {stored[0].folder} has {stored[0].manifest.stored_tower}, and visual.crop or "
            "visual.flip would change pictures, which are not there; leave them out, or train on the pictures"
        )
    return bool(stored)
