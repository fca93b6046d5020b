"""How the examples of one data set are spread over many clients, so that federations can be tried without any.

Partitioners take the labels of the examples, or a data set that has them, and a seed: the same arguments give the same parts.
They return the indices of each part, int64 and ascending; every example is in exactly one part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedcore.errors import ConfigError, MissingDependency

__all__ = ["by_id", "dirichlet", "feature_shift", "iid", "plot_partition", "quantity", "shards", "train_test"]

_TRIES = 1000

Labelled: TypeAlias = Any
"""Labels (a tensor, an array or a sequence), something with ``targets`` or ``labels``, or a data set of pairs ``(x, y)``."""


def iid(labels: Labelled, parts: int, *, seed: int, min_size: int = 1) -> list[Tensor]:
    """Deal the examples out at random, to each part as many, give or take one.

    Args:
        labels: the class of each example, shape (N,), or a data set that has it.
        parts: how many parts.
        seed: of the draw.
        min_size: the fewest examples a part may have.

    Raises:
        ConfigError: an argument makes no sense.
    """
    count = len(_classes(labels))
    _check(count, parts, min_size, seed)
    return _sorted(np.array_split(np.random.default_rng(seed).permutation(count), parts))


def shards(labels: Labelled, parts: int, per_part: int = 2, *, seed: int, min_size: int = 1) -> list[Tensor]:
    """Sort the examples by label, cut them into shards of one size, and deal so many to each part.

    Most parts so have at most ``per_part`` classes, or a few more where a shard lies across the border of two.

    Paper: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.

    Args:
        labels: the class of each example, shape (N,), or a data set that has it.
        parts: how many parts.
        per_part: how many shards a part gets.
        seed: of the draw, among examples of one class and of the deal.
        min_size: the fewest examples a part may have.

    Raises:
        ConfigError: an argument makes no sense, or there are fewer examples than shards.
    """
    classes = _classes(labels)
    _check(len(classes), parts, min_size, seed)
    if per_part < 1:
        raise ConfigError(f"per_part must be at least 1, not {per_part}")
    if parts * per_part > len(classes):
        raise ConfigError(f"{len(classes)} examples are too few for {parts * per_part} shards: lower parts or per_part")
    generator = np.random.default_rng(seed)
    mixed = generator.permutation(len(classes))
    pieces = np.array_split(mixed[np.argsort(classes[mixed], kind="stable")], parts * per_part)
    dealt = generator.permutation(len(pieces)).reshape(parts, per_part)
    return _sized([np.concatenate([pieces[piece] for piece in hand]) for hand in dealt], min_size, "lower parts or min_size")


def quantity(labels: Labelled, parts: int, alpha: float, *, seed: int, min_size: int = 10) -> list[Tensor]:
    """Deal the examples out at random, to parts whose sizes are drawn from a symmetric Dirichlet distribution.

    Paper: Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Args:
        labels: the class of each example, shape (N,), or a data set that has it.
        parts: how many parts.
        alpha: the concentration, above 0; the larger, the more alike the sizes.
        seed: of the draw.
        min_size: the fewest examples a part may have; draws with a smaller part are drawn again.

    Raises:
        ConfigError: an argument makes no sense, or no draw gave every part ``min_size`` examples.
    """
    count = len(_classes(labels))
    _check(count, parts, min_size, seed, alpha)
    generator = np.random.default_rng(seed)
    for _ in range(_TRIES):
        cuts = _cuts(generator.dirichlet(np.full(parts, alpha)), count)
        if np.diff([0, *cuts, count]).min() >= min_size:
            return _sorted(np.split(generator.permutation(count), cuts))
    raise ConfigError(_no_draw(count, parts, alpha, min_size))


def by_id(ids: Labelled, *, min_size: int = 1) -> list[Tensor]:
    """Give each id (a hospital, a writer, a device) a part of its own, in the order of the sorted ids.

    Args:
        ids: whose each example is, numbers or strings, shape (N,).
        min_size: the fewest examples an id may have.

    Raises:
        ConfigError: an id has fewer.
    """
    names, part_of = np.unique(_classes(ids), return_inverse=True)
    groups = [np.flatnonzero(part_of == part) for part in range(len(names))]
    small = [str(name) for name, group in zip(names, groups, strict=True) if len(group) < min_size]
    if small:
        listed = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        raise ConfigError(f"{len(small)} ids have fewer than {min_size} examples ({listed}): leave them out, or lower min_size")
    return _sorted(groups)


def feature_shift(
    labels: Labelled, parts: int, low: float, high: float, *, seed: int, min_size: int = 1
) -> tuple[list[Tensor], list[float]]:
    """Deal the examples out at random, and give each part a level at which its features are to be changed.

    What a level means is up to the caller: degrees of a rotation, the deviation of added noise, brightness. Levels are spread
    evenly from ``low`` to ``high``; which part has which is drawn.

    Paper: Hsieh et al., The Non-IID Data Quagmire of Decentralized Machine Learning, ICML 2020, for this kind of skew.

    Args:
        labels: the class of each example, shape (N,), or a data set that has it.
        parts: how many parts.
        low: the lowest level.
        high: the highest level.
        seed: of the draw.
        min_size: the fewest examples a part may have.

    Returns:
        The indices of each part, and the level of each part.

    Raises:
        ConfigError: an argument makes no sense.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ConfigError(f"levels must go from a low to a high number, not from {low!r} to {high!r}")
    made = iid(labels, parts, seed=seed, min_size=min_size)
    levels = np.random.default_rng([seed, 1]).permutation(np.linspace(low, high, parts))
    return made, [float(level) for level in levels]


def dirichlet(labels: Labelled, parts: int, alpha: float, *, seed: int, min_size: int = 10) -> list[Tensor]:
    """Split examples into parts of skewed labels and unequal sizes.

    Of each class every part gets a share, and the shares are drawn from a symmetric Dirichlet distribution: with alpha
    near 0 a class lies with one part alone, and the larger it is, the more the parts look alike.

    Papers: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
    2019 (arXiv:1909.06335); drawn class by class as in Yurochkin et al., Bayesian Nonparametric Federated Learning of
    Neural Networks, ICML 2019, so that sizes differ, too.

    Args:
        labels: the class of each example, shape (N,), or a data set that has it.
        parts: how many parts.
        alpha: the concentration, above 0.
        seed: of the draw.
        min_size: the fewest examples a part may have; draws with a smaller part are drawn again.

    Raises:
        ConfigError: an argument makes no sense, or no draw gave every part ``min_size`` examples.
    """
    classes = _classes(labels)
    _check(len(classes), parts, min_size, seed, alpha)
    generator = np.random.default_rng(seed)
    for _ in range(_TRIES):
        part_of = _draw(classes, parts, alpha, generator)
        if np.bincount(part_of, minlength=parts).min() >= min_size:
            return _sorted([np.flatnonzero(part_of == part) for part in range(parts)])
    raise ConfigError(_no_draw(len(classes), parts, alpha, min_size))


def train_test(indices: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split the examples of one part at random into ``(train, test)``, both ascending and neither empty.

    Args:
        indices: of the part, shape (N,), at least two.
        fraction: for the test, between 0 and 1; it is rounded to whole examples.
        seed: of the draw.

    Raises:
        ConfigError: an argument makes no sense.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction must be between 0 and 1, not {fraction!r}")
    if len(indices) < 2:
        raise ConfigError(f"a part of {len(indices)} has nothing to split: raise the partition's min_size to 2 or more")
    _check_seed(seed)
    for_test = min(max(1, round(fraction * len(indices))), len(indices) - 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(indices)))
    return indices[order[for_test:]].sort().values, indices[order[:for_test]].sort().values


def plot_partition(parts: Sequence[Tensor], labels: Labelled, path: str | Path) -> Path:
    """Draw how many examples of each class each part has into a picture at ``path``.

    Args:
        parts: what a partitioner returned.
        labels: the classes, or the data set, that it was given.
        path: of the picture; its ending says what kind.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependency("plotting needs matplotlib: pip install 'fedcore[plot]'") from error
    names, class_of = np.unique(_classes(labels), return_inverse=True)
    counts = np.array([np.bincount(class_of[part.numpy()], minlength=len(names)) for part in parts])
    figure = Figure(figsize=(7.2, 1.4 + min(9.0, 0.24 * len(parts))), layout="constrained")
    axes = figure.subplots()
    palette = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    ends = counts.cumsum(axis=1)
    for index, name in enumerate(names):
        color = palette(index if len(names) <= 20 else index / (len(names) - 1))
        axes.barh(np.arange(len(parts)), counts[:, index], left=ends[:, index] - counts[:, index], color=color, label=str(name))
    axes.set(xlabel="examples", ylabel="part", ylim=(len(parts) - 0.4, -0.6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) <= 20:
        figure.legend(loc="outside right upper", title="class", frameon=False)
    figure.savefig(path, dpi=144)
    return Path(path)


def _classes(data: Labelled) -> np.ndarray:
    """Return labels as an array of one dimension."""
    for name in ("targets", "labels"):
        data = getattr(data, name, data)
    if not isinstance(data, Tensor | np.ndarray) and len(data) and isinstance(data[0], tuple | list):
        data = [data[index][1] for index in range(len(data))]
    classes = np.asarray(data)
    if classes.ndim != 1:
        raise ConfigError(f"labels must have one dimension, not the shape {classes.shape}")
    return classes


def _check(count: int, parts: int, min_size: int, seed: int, alpha: float = 1.0) -> None:
    if parts < 1:
        raise ConfigError(f"parts must be at least 1, not {parts}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha must be a number above 0, not {alpha!r}")
    _check_seed(seed)
    if parts * min_size > count:
        raise ConfigError(f"{count} examples are too few for {parts} parts of at least {min_size}: lower parts or min_size")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")


def _draw(classes: np.ndarray, parts: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Return the part of each example."""
    part_of = np.zeros(len(classes), dtype=np.int64)
    for each in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == each))
        cuts = _cuts(generator.dirichlet(np.full(parts, alpha)), len(members))
        for part, chunk in enumerate(np.split(members, cuts)):
            part_of[chunk] = part
    return part_of


def _cuts(shares: np.ndarray, count: int) -> np.ndarray:
    """Return where to cut so many examples into shares."""
    return (np.cumsum(shares)[:-1] * count).astype(np.int64)


def _no_draw(count: int, parts: int, alpha: float, min_size: int) -> str:
    return (
        f"none of {_TRIES} draws gave each of {parts} parts at least {min_size} of {count} examples: "
        f"raise alpha ({alpha:g}), or lower parts or min_size"
    )


def _sized(made: Sequence[np.ndarray], min_size: int, advice: str) -> list[Tensor]:
    smallest = min(map(len, made))
    if smallest < min_size:
        raise ConfigError(f"a part would have {smallest} examples, fewer than {min_size}: {advice}")
    return _sorted(made)


def _sorted(made: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in made]
