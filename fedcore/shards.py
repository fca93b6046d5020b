"""How a payload is cut for the wire: whole tensors together, large ones in slices. Both ends compute the same cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, itemsize, nbytes

SHARD_BYTES = 16 << 20
"""Default size of a shard in bytes; larger tensors travel as slices of this size."""

MOST_SLICES = 1 << 13
"""Slices that all large tensors of a payload may have together: with the default, 128 GiB. Peers say where they cut."""


@dataclass(frozen=True)
class Shard:
    """A run of whole tensors, or one slice of a large one: what one frame holds.

    A slice goes by its tensor's name with ``@`` and the index of its first element behind it, as one dimension.
    """

    spec: Spec
    origins: tuple[tuple[str, int], ...]  # (tensor, first element) of each entry of the spec

    def take(self, parameters: Mapping[str, Tensor]) -> Parameters:
        """Return this shard of ``parameters`` as views of its memory (tensors must be contiguous and on the CPU)."""
        if self._whole:
            return {name: parameters[name] for name, _ in self.origins}
        return {
            info.name: _cut(parameters[name], start, info)
            for info, (name, start) in zip(self.spec.entries, self.origins, strict=True)
        }

    @cached_property
    def _whole(self) -> bool:
        return all(info.name == name for info, (name, _) in zip(self.spec.entries, self.origins, strict=True))


@lru_cache(maxsize=8)
def shards(spec: Spec, shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Cut a payload into shards of at most ``shard_bytes``; both ends compute the same cut.

    A payload without tensors has one empty shard, so that every payload has a frame.

    Raises:
        ConfigError: the shards are too small for this payload.
    """
    if shard_bytes < 4096:
        raise ConfigError(f"shard_bytes must be at least 4096, not {shard_bytes}")
    slices = sum(-(-length // shard_bytes) for length in map(nbytes, spec.entries) if length > shard_bytes)
    if slices > MOST_SLICES:
        raise ConfigError(f"shard_bytes of {shard_bytes} cuts this payload into {slices} slices, more than {MOST_SLICES}")
    cut: list[Shard] = []
    run: list[TensorInfo] = []
    size = 0
    for info in spec.entries:
        length = nbytes(info)
        if run and size + length > shard_bytes:
            cut.append(_whole(run))
            run, size = [], 0
        if length > shard_bytes:
            cut.extend(_slices(info, shard_bytes // itemsize(info.dtype)))
        else:
            run.append(info)
            size += length
    return (*cut, _whole(run)) if run or not cut else tuple(cut)


def _whole(run: list[TensorInfo]) -> Shard:
    return Shard(Spec(tuple(run)), tuple((info.name, 0) for info in run))


def _slices(info: TensorInfo, step: int) -> Iterator[Shard]:
    total = math.prod(info.shape)
    for start in range(0, total, step):
        entry = TensorInfo(f"{info.name}@{start}", info.dtype, (min(step, total - start),))
        yield Shard(Spec((entry,)), ((info.name, start),))


def _cut(tensor: Tensor, start: int, info: TensorInfo) -> Tensor:
    return tensor.reshape(-1)[start : start + math.prod(info.shape)]


