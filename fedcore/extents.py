"""The largest magnitude in a tensor: what tells whether it is finite, and in what unit it can be summed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from fedcore.errors import NonFinite
from fedcore.parameters import Parameters
from fedcore.views import NUMPY, elements, regions

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_SMALL = 1 << 20  # bytes up to which numpy is faster than a call of torch
_RUN = 1 << 18  # bytes of small tensors that are looked at as one: it stays in the cache of a core


def check_finite(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest magnitude in each floating-point tensor, found in one pass.

    Raises:
        NonFinite: naming the first tensor that holds NaN or infinity.
    """
    found = extents(parameters)
    if bad := next((name for name, magnitude in found.items() if not math.isfinite(magnitude)), None):
        raise NonFinite(f"tensor {bad!r} holds NaN or infinity")
    return found


def extents(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest magnitude in each floating-point tensor."""
    found: dict[str, float] = {}
    for run in runs(parameters):
        if len(run) == 1:
            found.update((name, extent(tensor)) for name, tensor in run.items())
        else:
            found.update(zip(run, _together(run), strict=True))
    return found


def squared_norm(tensors: Iterable[Tensor]) -> float:
    """Return the sum of the squares of all elements, in float64, one tensor after the other."""
    return math.fsum(float(tensor.double().square().sum()) for tensor in tensors)


def runs(parameters: Mapping[str, Tensor]) -> Iterator[Parameters]:
    """Cut the floating-point tensors into runs of small neighbours of one dtype, and large or uncommon ones alone."""
    run: Parameters = {}
    size = 0
    for name, tensor in parameters.items():
        dtype = tensor.dtype
        if not dtype.is_floating_point:
            continue
        nbytes = tensor.nbytes
        alone = dtype not in NUMPY or not 0 < nbytes <= _RUN
        if run and (alone or size + nbytes > _RUN or dtype is not next(iter(run.values())).dtype):
            yield run
            run, size = {}, 0
        if alone:
            yield {name: tensor}
        else:
            run[name] = tensor
            size += nbytes
    if run:
        yield run


def _together(run: Parameters) -> list[float]:
    kind = NUMPY[next(iter(run.values())).dtype]
    pieces = [np.frombuffer(region, kind) for region in regions(run.values())]
    row = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    starts = [0, *accumulate(tensor.numel() for tensor in run.values())][:-1]
    largest: list[float] = np.maximum.reduceat(np.abs(row), starts).tolist()  # NaN where one element is
    return largest


def extent(tensor: Tensor) -> float:
    """Return the largest magnitude in ``tensor``: 0 when it is empty, NaN or infinite when one of its elements is."""
    if not tensor.numel():
        return 0.0
    if tensor.dtype in NUMPY and tensor.nbytes <= _SMALL:
        row = elements(tensor)
        return float(max(row.max(), -row.min()))  # both are NaN if one element is
    plain = tensor.detach()
    if plain.dtype.itemsize == 1 or plain.dtype in _UNSIGNED:  # torch cannot compare these as they are
        plain = plain.double()
    low, high = torch.aminmax(plain)
    return max(abs(float(low)), abs(float(high))) if low == low else math.nan
