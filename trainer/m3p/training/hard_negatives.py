"""Hard negatives for matching: each picture of a turn with captions of other pairs that the network finds like it.

After ALBEF (arXiv 2107.07651, section 3.2): when the contrastive features of a turn are known, each picture draws captions of
other pairs, with chances in proportion to exp(similarity / temperature), and matching tells them from its own. Only captions
are drawn, not pictures: the captions of a whole turn are a few kilobytes that every rank is given, so the turn is one pool,
and the same one, for any number of ranks and micro-batches. A mismatched pair stays with its picture, and a group on one rank.

The draw is keyed by the pair (seed, objective, epoch, sample), as all choices are. What may differ between numbers of ranks is
the last bit of a similarity, as that of every other float does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3p.batch import Batch
from m3p.distributed import all_reduce_sum
from m3p.keys import hashes, uniform
from m3p.model.flops import Work
from m3p.objectives.tasks import TASKS
from m3p.objectives.tasks.contrastive import NAMES_OF_PICTURES
from m3p.objectives.tasks.matching import Matching, match_targets
from m3p.objectives.tasks.task import Targets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Ids = NDArray[np.int64]


class Drawn(NamedTuple):
    """The hard negatives of N pairs, M in all."""

    pairs: Ids
    """The number of the pair that each belongs to: [M]."""
    rows: Ids
    """The place in the turn of the pair whose caption it takes: [M]."""


@dataclass(frozen=True)
class TurnCaptions:
    """The captions of a turn of B pairs, of all ranks, and what says which of them may be drawn; on the CPU."""

    tokens: Ids
    """[W] the chosen captions as tokens, end to end."""
    lengths: Ids
    """[B] tokens of each."""
    sources: Ids
    """[B] number of the source."""
    pictures: Ids
    """[B, 3] names of the picture; two pictures are one if any of them is equal."""
    names: Ids
    """[K] names of all captions that the pairs have, in all languages, pair by pair."""
    names_of: Ids
    """[B] how many of these each has."""

    def texts(self, rows: Ids) -> Ids:
        """Return the tokens of the captions at `rows` [N], end to end."""
        return self.tokens[_runs(self.lengths.cumsum() - self.lengths, self.lengths, rows)]

    def may_be_drawn(self, rows: Ids) -> NDArray[np.bool_]:
        """Say which captions are mismatched ones of the pictures at `rows` [N]: bool [N, B].

        They are of another picture that has no caption in common, and of the same source where that has another pair in the turn.
        """
        own_source = self.sources[rows, None] == self.sources
        found = own_source | (own_source.sum(1, keepdims=True) == 1)
        for names in self.pictures.T:
            found &= names[rows, None] != names
        owners = np.repeat(np.arange(len(self.names_of)), self.names_of)
        names, numbers = np.unique(self.names, return_inverse=True)
        for name in (np.bincount(numbers, minlength=len(names)) > 1).nonzero()[0]:
            sharing = owners[numbers == name]
            found[np.ix_(np.isin(rows, sharing), sharing)] = False
        return found


def gather(batches: Sequence[Batch], targets: Targets, group: "ProcessGroup | None" = None) -> TurnCaptions:
    """Collect the captions of the turn from all ranks' micro-batches, which every rank calls; from CPU to CPU.

    `targets`: those of the contrastive task over the whole turn. `group` is as in `distributed.all_reduce_sum`.
    """
    mine = [batch.hard for batch in batches if batch.hard is not None]
    assert len(mine) == len(batches)
    columns = torch.zeros(3, len(targets["captions"]), dtype=torch.int64)
    for batch, pairs in zip(batches, mine, strict=True):
        columns[:, pairs.rows] = torch.stack([batch.words[pairs.texts], pairs.captions_of, pairs.sources])
    lengths, names_of, sources = (column.numpy() for column in all_reduce_sum(columns, group))
    rows = [pairs.rows.numpy() for pairs in mine]
    texts = [_texts(batch, pairs.texts.numpy()) for batch, pairs in zip(batches, mine, strict=True)]
    return TurnCaptions(
        tokens=_gather(lengths, rows, texts, group),
        lengths=lengths,
        sources=sources,
        pictures=np.stack([targets[name].numpy() for name in NAMES_OF_PICTURES], 1),
        names=_gather(names_of, rows, [pairs.captions.numpy() for pairs in mine], group),
        names_of=names_of,
    )


def draw(
    logits: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    count: int,
    by_similarity: int | None = None,
) -> Drawn:
    """Draw up to `count` captions for each of N pictures, none twice: first those in proportion to exp(logits), then others.

    Args:
        logits: [N, B] similarity of picture and caption over temperature.
        allowed: [N, B] which captions may be drawn.
        keys: [N] what the draw of each picture is keyed by; the noise of a caption is keyed by its location in the turn too.
        by_similarity: how many are drawn in proportion, all if left out; the others have equal chances.
    """
    hard = count if by_similarity is None else by_similarity
    chosen = _top(logits, allowed, keys, hard, 0)
    left = allowed.copy()
    np.put_along_axis(left, chosen, False, 1)
    random = _top(np.zeros_like(logits), left, keys, count - hard, 1)
    found = np.concatenate([chosen, random], 1)
    # Where fewer were allowed than wanted, what came next is none of them.
    ok = np.concatenate([np.take_along_axis(allowed, chosen, 1), np.take_along_axis(left, random, 1)], 1)
    pairs, ranks = ok.nonzero()
    return Drawn(pairs, found[pairs, ranks])


def _top(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_], keys: NDArray[np.uint64], count: int, stream: int
) -> Ids:
    """Return for each of N pictures `count` captions in proportion to exp(logits), those that may not be drawn last: [N, count].

    The largest sums of logit and Gumbel noise are such a draw (Gumbel-top-k, arXiv 1903.06059). `stream` gives other noise.
    """
    places = np.broadcast_to(np.arange(logits.shape[1]) + stream * logits.shape[1], logits.shape)
    noise = -np.log(-np.log(uniform(hashes(keys[:, None], places)) + 2.0**-54))
    scores = np.where(allowed, logits + noise, -np.inf)
    best: Ids = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return best


def draw_for(batch: Batch, turn: TurnCaptions, features: Tensor) -> Drawn:
    """Draw the hard negatives of a micro-batch. `features` [2, B, size]: the turn's captions over temperature, and its pictures.

    Reading the similarities waits for the device.
    """
    hard = batch.hard
    assert hard is not None
    logits = features[1][hard.rows.to(features.device)] @ features[0].T
    allowed, keys = turn.may_be_drawn(hard.rows.numpy()), hard.keys.numpy().view(np.uint64)
    return draw(logits.float().cpu().numpy(), allowed, keys, hard.wanted, hard.by_similarity)


def pairs_to_match(batch: Batch, turn: TurnCaptions, drawn: Drawn) -> Batch:
    """Return a further micro-batch of the same pictures: the N true pairs, then those that were drawn. `batch` is on the CPU."""
    hard = batch.hard
    assert hard is not None
    if not len(hard.rows):
        return replace(batch, targets={}, hard=None)  # a lone `<s>`, which keeps this rank in step
    numbers = np.concatenate([np.arange(len(hard.rows)), drawn.pairs])
    rows = np.concatenate([hard.rows.numpy(), drawn.rows])
    shown = hard.pictures[torch.from_numpy(numbers)]
    words = torch.from_numpy(turn.lengths[rows])
    lengths = words + batch.lengths[shown] - batch.words[shown]
    labels = (np.arange(len(rows)) < len(hard.rows)).astype(np.float32)
    asked = match_targets(np.arange(len(rows)), labels, hard.loss, numbers)
    nothing = torch.zeros(0, dtype=torch.int64)
    return replace(
        batch,
        token_ids=torch.from_numpy(turn.texts(rows)),
        words=words,
        lengths=lengths,
        visual_starts=batch.visual_starts[shown],
        hidden=nothing,
        hidden_rows=nothing,
        targets={Matching.name: {name: torch.from_numpy(array) for name, array in asked.items()}},
        tokens=int(lengths.sum()),
        longest=int(lengths.max()),
        hard=None,
    )


def work_of(pairs: Iterable[Batch]) -> Work:
    """Return the work that micro-batches of pairs to match add to a turn: pictures were embedded in it before.

    Where this rank has no pair, the lone sequence that keeps it in step is no work.
    """
    found = Work()
    for batch in pairs:
        if batch.samples:
            found += replace(Work.of(batch), visual_rows=0, pixel_rows=0)
    return found


def find(
    batches: Sequence[Batch], targets: Mapping[str, Targets], group: "ProcessGroup | None" = None
) -> TurnCaptions | None:
    """Return the captions of a turn whose objective wants hard negatives; None of another. Every rank calls it.

    `targets`: those of tasks over the whole turn. `group` is as in `distributed.all_reduce_sum`.
    """
    return None if batches[0].hard is None else gather(batches, targets[embedding_task(targets)], group)


def embedding_task(names: Mapping[str, object]) -> str:
    """Return the task among `names` by whose features captions and pictures are compared."""
    return next(name for name in names if TASKS[name].embeds)


def _texts(batch: Batch, sequences: Ids) -> Ids:
    """Return the words of some sequences of a batch, end to end."""
    words = batch.words.numpy()
    return batch.token_ids.numpy()[_runs(words.cumsum() - words, words, sequences)]


def _gather(lengths: Ids, rows: Sequence[Ids], values: Sequence[Ids], group: "ProcessGroup | None") -> Ids:
    """Lay values of all ranks end to end by row: `values` of a micro-batch are runs of `lengths` [B], of its `rows`."""
    whole, starts = np.zeros(lengths.sum(), np.int64), lengths.cumsum() - lengths
    for mine, of_mine in zip(rows, values, strict=True):
        whole[_runs(starts, lengths, mine)] = of_mine
    return all_reduce_sum(torch.from_numpy(whole), group).numpy()


def _runs(starts: Ids, lengths: Ids, rows: Ids) -> Ids:
    """Return the places of the runs `rows` [N], end to end; run r begins at starts[r] and has lengths[r] places."""
    sizes = lengths[rows]
    return np.arange(sizes.sum()) + np.repeat(starts[rows] - (sizes.cumsum() - sizes), sizes)
