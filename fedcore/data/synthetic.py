"""The synthetic(alpha, beta) data of FedProx: devices whose inputs, and whose laws from inputs to classes, differ.

Device k has ``int(LogNormal(4, 2)) + 50`` examples. With ``u_k ~ N(0, alpha)`` and ``B_k ~ N(0, beta)``: ::

    W_k[i, c] ~ N(u_k, 1)    b_k[c] ~ N(u_k, 1)    v_k[j] ~ N(B_k, 1)
    x ~ N(v_k, diag(j ** -1.2))    y = argmax(x W_k + b_k)

The second argument is a standard deviation, but for the covariance of x: alpha and beta are those of the authors' program.
Alpha says how much the laws differ, beta how much the inputs do. In the IID variant all devices have one law, and ``v_k = 0``.

Paper: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, section 5.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.values import check_number

__all__ = ["CLASSES", "FEATURES", "Examples", "synthetic"]

FEATURES, CLASSES = 60, 10
_TRAIN_SHARE = 0.9


class Examples(NamedTuple):
    """Inputs and their classes.

    Attributes:
        inputs: float32, shape (N, 60).
        labels: int64, shape (N,), from 0 to 9.
    """

    inputs: Tensor
    labels: Tensor


def synthetic(
    alpha: float = 1.0, beta: float = 1.0, *, devices: int = 30, iid: bool = False, seed: int = 0
) -> list[tuple[Examples, Examples]]:
    """Return ``(train, test)`` of each device: nine tenths of its examples, and the others.

    Args:
        alpha: how much laws differ, from 0.
        beta: how much inputs differ, from 0.
        devices: how many.
        iid: one law and one distribution for all; alpha and beta must then be 0.
        seed: the same arguments give the same data.

    Raises:
        ConfigError: an argument makes no sense.
    """
    check_number("synthetic alpha", alpha, float, 0)
    check_number("synthetic beta", beta, float, 0)
    check_number("synthetic devices", devices, int, 1)
    check_number("synthetic seed", seed, int, 0)
    if iid and (alpha or beta):
        raise ConfigError("the IID variant has no differences: give alpha=0 and beta=0 with iid=True")
    generator = np.random.default_rng(seed)
    sizes = generator.lognormal(4, 2, devices).astype(np.int64) + 50
    shared = _law(generator, 0.0) if iid else None
    return [_device(generator, int(size), alpha, beta, shared) for size in sizes]


def _law(generator: np.random.Generator, mean: float) -> tuple[np.ndarray, np.ndarray]:
    return generator.normal(mean, 1, (FEATURES, CLASSES)), generator.normal(mean, 1, CLASSES)


def _device(
    generator: np.random.Generator, size: int, alpha: float, beta: float, shared: tuple[np.ndarray, np.ndarray] | None
) -> tuple[Examples, Examples]:
    weights, bias = shared or _law(generator, generator.normal(0, alpha))
    center = np.zeros(FEATURES) if shared else generator.normal(generator.normal(0, beta), 1, FEATURES)
    deviations = np.arange(1, FEATURES + 1) ** -0.6
    inputs = generator.normal(center, deviations, (size, FEATURES))
    labels = (inputs @ weights + bias).argmax(axis=1)
    # draws are independent, so that the first are as good as shuffled ones
    made, cut = Examples(torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)), int(_TRAIN_SHARE * size)
    return Examples(made.inputs[:cut], made.labels[:cut]), Examples(made.inputs[cut:], made.labels[cut:])
