"""How the examples of one data set are spread over many clients, so that federations can be tried without any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedcore.errors import ConfigError

__all__ = ["dirichlet"]

_TRIES = 1000


def dirichlet(
    labels: Tensor | Sequence[int], parts: int, alpha: float, *, seed: int, min_size: int = 10
) -> list[Tensor]:
    """Split examples into parts of skewed labels and unequal sizes.

    Of each class every part gets a share, and the shares are drawn from a symmetric Dirichlet distribution: with alpha
    near 0 a class lies with one part alone, and the larger it is, the more the parts look alike.

    Papers: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
    2019 (arXiv:1909.06335); drawn class by class as in Yurochkin et al., Bayesian Nonparametric Federated Learning of
    Neural Networks, ICML 2019, so that sizes differ, too.

    Args:
        labels: the class of each example, shape (N,).
        parts: how many parts.
        alpha: the concentration, above 0.
        seed: of the draw: the same arguments give the same parts.
        min_size: the fewest examples a part may have; draws with a smaller part are drawn again.

    Returns:
        The indices of each part, int64 and ascending. Every example is in exactly one part.

    Raises:
        ConfigError: an argument makes no sense, or no draw gave every part ``min_size`` examples.
    """
    classes = np.asarray(labels)
    _check(classes, parts, alpha, min_size, seed)
    generator = np.random.default_rng(seed)
    for _ in range(_TRIES):
        part_of = _draw(classes, parts, alpha, generator)
        if np.bincount(part_of, minlength=parts).min() >= min_size:
            return [torch.from_numpy(np.flatnonzero(part_of == part)) for part in range(parts)]
    raise ConfigError(
        f"none of {_TRIES} draws gave each of {parts} parts at least {min_size} of {len(classes)} examples: "
        f"raise alpha ({alpha:g}), or lower parts or min_size"
    )


def _check(classes: np.ndarray, parts: int, alpha: float, min_size: int, seed: int) -> None:
    if classes.ndim != 1:
        raise ConfigError(f"labels must have one dimension, not the shape {classes.shape}")
    if parts < 1:
        raise ConfigError(f"parts must be at least 1, not {parts}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha must be a number above 0, not {alpha!r}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, not {seed}")
    if parts * min_size > len(classes):
        raise ConfigError(f"{len(classes)} examples are too few for {parts} parts of at least {min_size}")


def _draw(classes: np.ndarray, parts: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """Return the part of each example."""
    part_of = np.zeros(len(classes), dtype=np.int64)
    for each in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == each))
        shares = generator.dirichlet(np.full(parts, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, chunk in enumerate(np.split(members, cuts)):
            part_of[chunk] = part
    return part_of
