"""`image_caption`: a picture and its caption; masked words or regions, matching, contrastive (M3P's MC-* on plain pairs)."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from m3p.batch import Allocate, HardNegatives, Picture, allocate_nothing
from m3p.data.kinds import CAPTIONS, Kind
from m3p.data.sample import Sample
from m3p.data.tokenizer import BOS
from m3p.keys import keys_of, pick, splitmix64, uniform
from m3p.model.flops import Work
from m3p.objectives.mismatches import Candidates, captions_of, find_partners
from m3p.objectives.objective import Context, Ids, Objective, ObjectiveConfig, Part, Read, ShownText, Text
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import Contrastive, names_of
from m3p.objectives.tasks.forms import Alone, Form, Joint, PackedPairs
from m3p.objectives.tasks.masked_regions import MaskedRegions, RegionMask, mask_regions
from m3p.objectives.tasks.masked_words import MaskedWords, mask_words
from m3p.objectives.tasks.matching import Matching
from m3p.objectives.tasks.negatives import MatchingConfig
from m3p.packing import Packer
from m3p.visual.source import VisualSource


class ImageCaptionConfig(ObjectiveConfig):
    """Fields of `objectives.image_caption`."""

    possible_tasks: ClassVar[tuple[str, ...]] = tuple(name for name, task in TASKS.items() if task.forms)
    needs_pictures = True

    tasks: dict[str, float] = Field(
        dict.fromkeys((MaskedWords.name, MaskedRegions.name, Matching.name, Contrastive.name), 1.0),
        description="Weight of each task in the loss; 0 leaves it out.",
    )
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Chance of a piece or region to be masked.")
    matching: MatchingConfig = Field(MatchingConfig(), description="Mismatched pairs of the task matching.")

    @model_validator(mode="after")
    def _hard_negatives_can_be_drawn(self) -> "ImageCaptionConfig":
        active = [TASKS[name] for name in self.active_tasks]
        if self.weight == 0 or not self.draws_hard_negatives:
            return self
        if not any(task.embeds for task in active):
            raise ValueError(
                f"matching.negatives = {self.matching.negatives}: they are drawn by the features of {Contrastive.name}, which "
                f"has no weight; give tasks.{Contrastive.name} one, or set negatives: random"
            )
        masks = [task.name for task in active if task.masks_words or task.masks_regions]
        if masks:
            raise ValueError(
                f"matching.negatives = {self.matching.negatives}: such pairs are made while the network trains, and are seen "
                f"whole, so a mask would tell true pairs from them; set tasks.{masks[0]} = 0, or negatives: random"
            )
        return self

    def build(self, context: Context) -> "ImageCaption":
        """Return the objective."""
        return ImageCaption(self, context)

    @property
    def forms(self) -> frozenset[Form]:
        """The forms of pairs that the active tasks ask about."""
        return frozenset().union(*(TASKS[name].forms for name in self.active_tasks))

    @property
    def draws_hard_negatives(self) -> bool:
        """Whether training makes the pairs of matching, by the features of the turn, and not the loader."""
        return Form.MISMATCHED in self.forms and self.matching.are_drawn

    @property
    def known_beforehand(self) -> bool:
        """Hard negatives are drawn by what the network makes of the turn."""
        return not self.draws_hard_negatives

    def longest_sample(self, visual: VisualSource | None) -> Work:
        """Return the work of a caption of `max_tokens` and a picture of all its tokens, for every active task."""
        assert visual is not None, "the recipe wants a visual source for pairs"
        words, tokens = self.max_tokens, visual.tokens_per_picture
        tasks = [TASKS[name] for name in self.active_tasks]
        pairs = (Form.JOINT in self.forms) + self.matching.negatives_per_pair * (Form.MISMATCHED in self.forms)
        joint, alone = pairs * [words + tokens], Form.ALONE in self.forms
        lengths = ([words, 1 + tokens] if alone else []) + joint
        texts = ([words, 1] if alone else []) + pairs * [words]
        # Of each pair words or regions are masked, at a coin's toss.
        masked_words = self.mask_rate * words / 2 if any(task.masks_words for task in tasks) else 0.0
        masked_regions = self.mask_rate * tokens / 2 if any(task.masks_regions for task in tasks) else 0.0
        rows = tokens + len(joint) * visual.rows_to_hide(0.9 * masked_regions)
        terms = {task.name: task.terms(masked_words, masked_regions) for task in tasks}
        terms |= {name: float(pairs) for name in terms if Form.MISMATCHED in TASKS[name].forms}
        return Work(
            slots=sum(lengths),
            squared_lengths=sum(length**2 for length in lengths),
            words=sum(texts),
            squared_words=sum(length**2 for length in texts),
            visual_rows=rows,
            pixel_rows=rows,
            terms=terms,
        )


class Pairs(NamedTuple):
    """Texts and pictures that are seen together, column by column: of the samples themselves, or mismatched."""

    samples: Sequence[Sample]
    """[N] the sample that each pair is made for."""
    owners: NDArray[np.uint64]
    """[N, 4] what the random choices of each pair are keyed by."""
    tokens: Ids
    """[W] tokens of all texts, end to end."""
    lengths: Ids
    """[N] tokens of each text."""
    pictures: list[Picture]
    """[N] the picture of each pair."""


class Masked(NamedTuple):
    """What is left to be seen of pairs after masking."""

    tokens: Ids
    """[W] tokens of all texts, end to end, the masked ones hidden."""
    words: Ids
    """[K] places of the masked words in `tokens`."""
    regions: RegionMask
    """The masked regions, by the number of their pair."""


class ImageCaption(Objective):
    """A pair's text alone and picture alone (contrastive), its masked joint form, and a mismatched joint form."""

    config: ImageCaptionConfig
    kind: ClassVar[Kind] = CAPTIONS

    def add(self, packer: Packer, part: Part, read: Read) -> None:
        """Pack pairs in each form that a task asks about: all texts, all pictures, all joint pairs, all mismatched pairs.

        The mismatched partners of a pair are the next ones of its own source in the turn, whatever rank they are on. (The
        next one of the turn would be of another source nearly always, where there are several: they take turns. Then a
        text and a picture of different sources could be told apart from true pairs without looking at either.)

        Where hard negatives are asked for, training makes all joint pairs, of what is packed here alone.
        """
        owners = np.array([sample.owner for sample in part.samples], np.uint64)
        pictures = [sample.picture for sample in part.samples]
        pairs = Pairs(part.samples, owners, part.tokens, part.lengths, pictures)
        packed, forms = PackedPairs(matching=self.config.matching), self.config.forms
        if Form.ALONE in forms:
            packed.alone = self._add_alone(packer, np.array(part.positions) - part.turn.start, pairs)
        if self.config.draws_hard_negatives:
            assert packed.alone is not None, "validation wants contrastive beside hard negatives"
            packer.hard = self._hard_negatives(pairs, packed.alone, self.mix.source_numbers(part.positions))
            forms = forms - _MADE_IN_TRAINING
        if Form.JOINT in forms:
            packed.joint = self._add_joint(packer, pairs, self.mask(pairs, "mask"))
        if Form.MISMATCHED in forms:
            others, packed.mismatched_of = self._mismatches(part, pairs, read)
            if others.samples:
                packed.mismatched = self._add_joint(packer, others, self.mask(others, "mismatch"))
        for name in self.tasks:
            if TASKS[name].forms <= forms:
                TASKS[name].ask(packer, packed)

    def packer(self, allocate: Allocate = allocate_nothing) -> Packer:
        """Return a new packer; where hard negatives are drawn, also a micro-batch without a pair says so."""
        packer = super().packer(allocate)
        if self.config.draws_hard_negatives:
            nobody = Pairs([], np.zeros((0, 4), np.uint64), _NONE, _NONE, [])
            packer.hard = self._hard_negatives(nobody, Alone(range(0), range(0), _NONE, [], [], [], []), _NONE)
        return packer

    def text(self, sample: Sample) -> Text:
        """The caption chosen."""
        return Text(self.choose(sample))

    def show(self, sample: Sample) -> ShownText:
        """Return all captions, the one that is chosen, and how the network sees it."""
        return ShownText(sample.captions, self.choose(sample), self.text(sample).text)

    def choose(self, sample: Sample) -> str:
        """Choose the caption: language and text each equally likely. The same whoever asks for it."""
        captions = sample.captions
        if len(captions) == 1:
            (texts,) = captions.values()
            if len(texts) == 1:
                return texts[0]
        draw = sample.draws("caption")
        return pick(captions[pick(sorted(captions), next(draw))], next(draw))

    def mask(self, pairs: Pairs, purpose: str) -> Masked:
        """Mask words or regions of each pair, never both, at a coin's toss; only words where no task asks for regions (and
        vice versa). Choices are keyed by the pair's sample and `purpose`.
        """
        words = any(TASKS[name].masks_words for name in self.tasks)
        regions = any(TASKS[name].masks_regions for name in self.tasks)
        if not pairs.samples or not (words or regions):
            return Masked(pairs.tokens, _NONE, _NO_REGIONS)
        keys = keys_of(pairs.owners, purpose)
        masks_words = uniform(splitmix64(keys)) < 0.5 if words and regions else np.full(len(keys), words)
        tokens, places = self._mask_words(pairs, keys, masks_words) if words else (pairs.tokens, _NONE)
        masks_regions = (~masks_words).nonzero()[0]
        pictures = [pairs.pictures[number] for number in masks_regions.tolist()]
        background = self.context.visual.background_class if self.context.visual else None
        masked = mask_regions(pictures, keys[masks_regions], self.config.mask_rate, background)
        return Masked(tokens, places, masked._replace(pictures=masks_regions[masked.pictures]))

    def _mask_words(self, pairs: Pairs, keys: NDArray[np.uint64], chosen: NDArray[np.bool_]) -> tuple[Ids, Ids]:
        """Return the words of all pairs, some hidden in those that are `chosen` [N], and the places of the hidden ones."""
        tokens, places = mask_words(pairs.tokens, pairs.lengths, keys, self.config.mask_rate, self.context.tokenizer)
        of_chosen = np.repeat(chosen, pairs.lengths)
        return np.where(of_chosen, tokens, pairs.tokens), places[of_chosen[places]]

    def _add_alone(self, packer: Packer, rows: Ids, pairs: Pairs) -> Alone:
        """Pack all texts, then all pictures, each alone; `rows` [N] are the places of the pairs in the turn."""
        texts, _ = packer.add_many(pairs.tokens, pairs.lengths)
        count = len(pairs.samples)
        images, _ = packer.add_many(np.full(count, BOS), np.ones(count, np.int64), pairs.pictures)
        # By the caption as it was written: two that were switched apart still say the same.
        captions = [self.choose(sample).casefold() for sample in pairs.samples]
        concepts = [sample.concept for sample in pairs.samples]
        # Where one name of a picture is not known, its concept stands for it: equal names still mean equal pictures.
        contents = [sample.content or concept for sample, concept in zip(pairs.samples, concepts, strict=True)]
        published = [sample.published or concept for sample, concept in zip(pairs.samples, concepts, strict=True)]
        return Alone(texts, images, rows, captions, concepts, contents, published)

    def _add_joint(self, packer: Packer, pairs: Pairs, masked: Masked) -> Joint:
        """Pack pairs, text and picture in one sequence, as they are seen masked."""
        sequences, firsts = packer.add_many(masked.tokens, pairs.lengths, pairs.pictures)
        wanted = []
        for number, (_, places, hidden) in masked.regions.by_picture():
            packer.hide(sequences[number], places[hidden], pairs.pictures[number])
            wanted.append((pairs.pictures[number], places))
        starts: Ids = pairs.lengths.cumsum() - pairs.lengths
        words = masked.words + np.repeat(firsts - starts, pairs.lengths)[masked.words]
        regions = (firsts + pairs.lengths)[masked.regions.pictures] + masked.regions.places
        return Joint(sequences, words, pairs.tokens[masked.words], regions, wanted)

    def _hard_negatives(self, pairs: Pairs, alone: Alone, sources: Ids) -> HardNegatives:
        """Return what is to be known of pairs that stand `alone` [N] to draw their hard negatives; `sources` [N] by number."""
        captions = [sorted(captions_of(sample)) for sample in pairs.samples]
        return HardNegatives(
            rows=torch.from_numpy(alone.rows),
            texts=torch.tensor(alone.texts, dtype=torch.int64),
            pictures=torch.tensor(alone.pictures, dtype=torch.int64),
            sources=torch.from_numpy(sources),
            keys=torch.from_numpy(keys_of(pairs.owners, "hard negatives").view(np.int64)),
            captions=torch.from_numpy(names_of([text for texts in captions for text in texts])),
            captions_of=torch.tensor([len(texts) for texts in captions], dtype=torch.int64),
            wanted=self.config.matching.negatives_per_pair,
            by_similarity=self.config.matching.hard_per_pair,
            loss=self.config.matching.loss,
        )

    def _mismatches(self, part: Part, pairs: Pairs, read: Read) -> tuple[Pairs, Ids]:
        """Return pairs with another's picture or another's caption, by turns, and the number of the pair that each is made of."""
        kept, texts, pictures = list[int](), list[Ids](), list[Picture]()
        others_picture = (uniform(keys_of(pairs.owners, "partner")) < 0.5).tolist()
        own = dict(zip(part.positions, np.split(pairs.tokens, pairs.lengths.cumsum()[:-1]), strict=True))
        candidates = Candidates(self.mix.source_numbers(part.turn), part.turn.start)
        for number, position in enumerate(part.positions):
            partners = find_partners(candidates, position, read, self.config.matching.negatives_per_pair)
            for place, partner in enumerate(partners):
                kept.append(number)
                if others_picture[number] ^ (place % 2 == 1):
                    texts.append(own[position])
                    pictures.append(read(partner).picture)
                else:
                    texts.append(own[partner] if partner in own else self.encode([self.text(read(partner))])[0])
                    pictures.append(pairs.pictures[number])
        lengths = np.array([len(text) for text in texts], np.int64)
        samples = [pairs.samples[number] for number in kept]
        mismatched = Pairs(samples, pairs.owners[kept], np.concatenate([_NONE, *texts]), lengths, pictures)
        return mismatched, np.array(kept, np.int64)


_MADE_IN_TRAINING = frozenset({Form.JOINT, Form.MISMATCHED})
"""Forms that the loader leaves out where hard negatives are drawn."""
_NONE = np.zeros(0, np.int64)
_NO_REGIONS = RegionMask(_NONE, _NONE, np.zeros(0, np.bool_))
