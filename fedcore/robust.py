"""Robust aggregation: means that a few clients cannot move as they like, however many bytes the updates have.

Rules look at what each update *changed* of the round's floating-point tensors, as one flat vector: a matrix with one row a
client, of which only a block of columns is ever in memory. A rule first learns what it must about whole rows (distances,
norms), block by block, and then makes one number of each column. All arithmetic is in float64 and in one order, so that
neither the order of arrival nor the number of cores changes a bit; the model is rounded once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from fedcore.spool import Floats


class Block(NamedTuple):
    """Some columns.

    Attributes:
        rows: what each client changed, shape (n, columns).
        anchor: what a rule compares that with, shape (columns,): zeros, unless the strategy has something.
    """

    rows: Floats
    anchor: Floats


Finish: TypeAlias = Callable[[Block], Floats]
"""Makes one number of each column."""


@dataclass(frozen=True)
class Rows:
    """The changes of a round.

    Attributes:
        count: n, how many rows there are.
        blocks: goes over them, a block of columns at a time; may be called again.
    """

    count: int
    blocks: Callable[[], Iterator[Block]]


# --- what is known of whole rows ---


def squared_distances(rows: Rows) -> Floats:
    """Return the squares of the distances between rows, shape (n, n), as sums of squared differences."""
    total = np.zeros((rows.count, rows.count))
    for block, _ in rows.blocks():
        room = np.empty_like(block)  # fresh memory for each pair would cost more than the arithmetic
        for index in range(1, rows.count):
            apart = np.subtract(block[:index], block[index], out=room[:index])
            total[index, :index] += np.square(apart, out=apart).sum(axis=1)
    return total + total.T


def _distances_from(rows: Rows, centre: Finish) -> Floats:
    """Return the distance of each row from a point."""
    total = np.zeros(rows.count)
    for block in rows.blocks():
        total += np.square(block.rows - centre(block)).sum(axis=1)
    return np.sqrt(total)


def weighted(weights: Floats, anchor: float = 0.0) -> Finish:
    """Return what sums the rows up with these weights, and the anchor with its own."""

    def total(block: Block) -> Floats:
        made = anchor * block.anchor
        for weight, row in zip(weights, block.rows, strict=True):
            made = made + weight * row
        return made

    return total


# --- rules by column ---


def median(block: Block) -> Floats:
    """Return the median of each column; of an even number of rows the mean of the middle two."""
    middle: Floats = np.median(block.rows, axis=0)
    return middle


def trimmed_mean(f: int) -> Finish:
    """Return the mean of each column without its f lowest and f highest values."""
    return lambda block: np.sort(block.rows, axis=0)[f : len(block.rows) - f].mean(axis=0)


def mean_of(indices: Sequence[int]) -> Finish:
    """Return the mean of some rows."""
    return lambda block: block.rows[list(indices)].mean(axis=0)


def mean_near_median(indices: Sequence[int], count: int) -> Finish:
    """Return, of some rows, the mean of the ``count`` values of each column that are nearest its median."""

    def made(block: Block) -> Floats:
        values = np.sort(block.rows[list(indices)], axis=0)
        nearest = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")[:count]
        mean: Floats = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
        return mean

    return made


# --- Krum ---

_SAME = 1 + 1e-12  # scores nearer than that are a tie that rounding has broken


def krum_scores(distances: Floats, neighbours: int) -> Floats:
    """Return for each row the sum of its squared distances to the nearest others, so many of them."""
    others = np.sort(distances + np.diag(np.full(len(distances), np.inf)), axis=1)
    scores: Floats = others[:, :neighbours].sum(axis=1)
    return scores


def lowest(scores: Floats, count: int = 1) -> list[int]:
    """Return the indices of the lowest scores, lowest first; of equal ones the lower index comes first."""
    left, chosen = dict(enumerate(scores.tolist())), []
    for _ in range(count):
        bound = min(left.values()) * _SAME
        chosen.append(next(index for index, score in left.items() if score <= bound))
        del left[chosen[-1]]
    return chosen


def bulyan_picks(distances: Floats, f: int) -> list[int]:
    """Return ``n - 2 f`` rows, each Krum's choice among those that are left, of which f count as Byzantine to the end."""
    left, picks = list(range(len(distances))), list[int]()
    while len(picks) < len(distances) - 2 * f:
        scores = krum_scores(distances[np.ix_(left, left)], max(0, len(left) - f - 2))  # 0: all that is left is picked
        picks.append(left.pop(lowest(scores)[0]))
    return picks


# --- rules by length ---


def geometric_median(rows: Rows, nu: float, iterations: int, start: Floats | None = None) -> Floats:
    """Return the weights whose mean is near the point with the least sum of distances: smoothed Weiszfeld steps.

    Args:
        rows: the changes.
        nu: the smallest distance that a weight is divided by.
        iterations: how many steps.
        start: weights of the point that the first step starts from; None: the mean.
    """
    weights = np.full(rows.count, 1 / rows.count) if start is None else start
    for _ in range(iterations):
        pulls = 1 / np.maximum(_distances_from(rows, weighted(weights)), nu)
        weights = pulls / pulls.sum()
    return weights


def bounded(rows: Rows, most: float | None) -> Floats:
    """Return the weights of the mean of rows that are cut to a length; None: to the median of their lengths."""
    norms = _distances_from(rows, lambda block: np.zeros(block.rows.shape[1]))
    return _cut(norms, float(np.median(norms)) if most is None else most) / rows.count


def centered_clipping(rows: Rows, tau: float, iterations: int) -> Finish:
    """Return v after so many steps ``v = v + mean(clip(row - v, tau))``, beginning with the anchor."""
    weights, kept = np.zeros(rows.count), 1.0
    for _ in range(iterations):
        parts = _cut(_distances_from(rows, weighted(weights, kept)), tau) / rows.count
        stays = 1 - parts.sum()
        weights, kept = weights * stays + parts, kept * stays
    return weighted(weights, kept)


def trust(rows: Rows) -> tuple[Floats, Floats]:
    """Return for each row the cosine of its angle to the anchor, 0 where that is negative, and its weight by FLTrust."""
    products, squares, length = np.zeros(rows.count), np.zeros(rows.count), 0.0
    for block, anchor in rows.blocks():
        products += (block * anchor).sum(axis=1)
        squares += np.square(block).sum(axis=1)
        length += float(np.square(anchor).sum())
    norms, norm = np.sqrt(squares), math.sqrt(length)
    scale = np.divide(norm, norms, out=np.zeros(rows.count), where=norms > 0)
    scores = np.maximum(0, products * scale / length) if length else np.zeros(rows.count)
    return scores, scores * scale / scores.sum() if scores.any() else scores


def _cut(norms: Floats, most: float) -> Floats:
    """Return what vectors of these lengths are multiplied by, so that none is longer than ``most``."""
    return np.divide(most, norms, out=np.ones(len(norms)), where=norms > most)


# --- what is done before a rule ---


def mixed(rows: Rows, groups: Sequence[Sequence[int]]) -> Rows:
    """Return rows that are means of groups of rows."""

    def blocks() -> Iterator[Block]:
        for block, anchor in rows.blocks():
            yield Block(np.stack([block[list(group)].mean(axis=0) for group in groups]), anchor)

    return Rows(len(groups), blocks)


def nearest_neighbours(distances: Floats, f: int) -> list[list[int]]:
    """Return for each row the ``n - f`` rows that are nearest to it, itself among them."""
    return [sorted(np.argsort(row, kind="stable")[: len(row) - f].tolist()) for row in distances]


def buckets(count: int, size: int, seed: str) -> list[list[int]]:
    """Return a random partition of so many rows into buckets of a size, of which the last may be smaller."""
    order = random.Random(seed).sample(range(count), count)  # noqa: S311 - a seeded choice, no secret
    return [order[start : start + size] for start in range(0, count, size)]
