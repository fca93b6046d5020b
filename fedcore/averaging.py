"""The weighted mean of FedAvg, exact, so that no order and no grouping of the updates changes a bit."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedcore.aggregator import CheckingAggregator, Job, Result, Update, as_update
from fedcore.errors import AggregationError, ConfigError, InvalidWeight, SchemaMismatch
from fedcore.exchange import Exchange
from fedcore.extents import extents
from fedcore.fixedpoint import LARGEST_TERM, Batch, FixedPointSum, batches
from fedcore.parameters import Parameters, Spec, is_statistic, moves

Weighting: TypeAlias = Literal["examples", "uniform"] | Callable[[Update], float]

_UNIFORM = 1 << 12  # any constant; this one leaves the fixed point 12 more bits than 1 would
_LEAST_BOUND = 2.0**-20  # a tensor that is almost zero in the model may still grow in a round
_FRACTION_BITS = 20  # of weights that need not be whole: those of a callable, and those that are cut to a share


class FedAvgAggregator(CheckingAggregator):
    """The weighted mean ``sum(n_i * w_i) / sum(n_i)``, exact: no order and no grouping of the updates changes a bit.

    What is done by dtype: floating-point tensors, 0-dimensional ones included, are averaged by
    :class:`~fedcore.fixedpoint.FixedPointSum` and rounded once to their own dtype; integer buffers (such as
    ``num_batches_tracked``) take the largest value; boolean ones are true where any is.

    Memory: 8 bytes for each element of the model, whatever the number of updates.

    Args:
        base: the model the round starts from; its magnitudes fix the unit of the sums before the first :meth:`add`.
            :meth:`aggregate`, which has all updates at hand, works without.
        weighting: ``"examples"``, ``"uniform"``, or a function of the update that returns a positive number, which is
            rounded to a multiple of ``2 ** -20``.
        max_share: the largest part of the total weight that one client may have; heavier ones are cut down to it. With
            so few updates that this cannot be, all weigh the same. Keeps the ``1 / max_share`` heaviest updates.
        exchange: its rules for buffers go before what is done by dtype.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor] | None = None,
        *,
        weighting: Weighting = "examples",
        max_share: float | None = None,
        exchange: Exchange | None = None,
    ):
        if not callable(weighting) and weighting not in ("examples", "uniform"):
            raise ConfigError(f"weighting must be 'examples', 'uniform' or a function, not {weighting!r}")
        if max_share is not None and not 0 < max_share <= 1:
            raise ConfigError(f"max_share must be above 0 and at most 1, not {max_share!r}")
        self.weighting, self.max_share = weighting, max_share
        self.retains = max_share is not None
        self.mergeable = max_share is None
        self.weight = 0
        self._held: list[tuple[int, str, str, int, Update]] = []
        self._arrivals = 0
        self._batches: list[Batch] = []
        self._moved = 0  # how many of these are sums of what is discounted when it is late
        self._spec: Spec | None = None
        self._sums: dict[str, FixedPointSum] = {}
        self._finest = 0.0  # the largest scale of a sum
        self._largest: dict[str, Tensor] = {}
        self._totals: dict[str, Tensor] = {}  # of integers that are averaged
        self._unmoved: dict[str, Tensor] = {}  # what stays as it is at the server
        self._exchange = exchange or Exchange()
        self._base = base

    @property
    def _fraction_bits(self) -> int:
        whole = not callable(self.weighting) and self.max_share is None and not self.difference
        return 0 if whole else _FRACTION_BITS

    def prepare(self, spec: Spec, extents: Mapping[str, float]) -> None:
        """Fix the units of the sums; :meth:`add` measures the model itself if nobody did."""
        if self._base is not None:
            base, self._base = self._base, None
            bounds = {name: max(found, _LEAST_BOUND) if found else 0.0 for name, found in extents.items()}
            self._start(spec, base, bounds)

    def check(self, update: Update) -> None:
        """Check shape, weight and range of an update.

        Raises:
            UpdateRejected: the update cannot be added.
        """
        weight = self._weigh(update)
        spec = self._known()
        if not update.extents:  # whoever measured them has looked at the rest, too
            spec.check(update.parameters)
        elif weight * self._finest * max(update.extents.values()) <= LARGEST_TERM:
            return
        for name, total in self._sums.items():
            total.check(name, update.extent(name), weight)

    def fold(self, update: Update) -> None:
        """Fold in an update that has passed :meth:`check`."""
        if self.max_share is None:
            self._fold(update, self._weigh(update))
            return
        self._arrivals += 1  # tells apart what nothing else does, and what is therefore the same
        heapq.heappush(self._held, (self._weigh(update), update.client_id, update.digest, self._arrivals, update))
        if len(self._held) > int(1 / self.max_share):
            weight, *_, lightest = heapq.heappop(self._held)
            self._fold(lightest, weight)

    def result(self) -> Parameters:
        """Return the mean.

        Raises:
            AggregationError: there was no update.
        """
        for weight, update in self._capped():
            self._fold(update, weight)
        self._held.clear()
        if not self.weight:
            raise AggregationError("the mean of no updates does not exist")
        spec = self._known()
        blank = spec.blank(self.lend)
        self._place()
        self.each([Job(batch.memory.nbytes, partial(batch.mean, self.weight, blank)) for batch in self._batches])
        means = {name: _rounded_mean(total, self.weight, blank[name].dtype) for name, total in self._totals.items()}
        return spec.tie({**blank, **self._largest, **self._unmoved, **means})

    def aggregate(self, updates: Iterable[Result]) -> Parameters:
        """Return the mean of ``updates``: Updates, or ``(parameters, num_examples)`` pairs."""
        listed = [as_update(update) for update in updates]
        if self._base is None and self._spec is None and listed:
            first = listed[0].parameters
            spec = Spec.of(first)
            for update in listed:
                spec.check(update.parameters)
            found = [extents(update.parameters) for update in listed]
            self._start(spec, first, {name: max(each[name] for each in found) for name in found[0]})
        return super().aggregate(listed)

    def partial(self) -> Parameters:
        """Return the exact sums so far: ``sum/NAME/...`` for each averaged tensor, ``max/NAME`` for others, ``weight``."""
        self._known()
        if not self.mergeable:
            return super().partial()
        for batch in self._batches:
            batch.part()
        parts = {f"sum/{name}/{part}": t for name, s in self._sums.items() for part, t in s.parts().items()}
        largest = {f"max/{name}": tensor for name, tensor in self._largest.items()}
        return {**parts, **largest, "weight": torch.tensor(self.weight)}

    def merge(self, partial: Parameters) -> None:
        """Fold in the exact sums of another aggregator of the same round."""
        if not self.mergeable:
            super().merge(partial)
        self._known()
        words = {name: self._words(partial, name) for name in self._sums}
        if missing := next((key for key in ("weight", *(f"max/{name}" for name in self._largest)) if key not in partial), None):
            raise SchemaMismatch(f"{missing!r} is missing from the partial sums")
        self._place()
        for batch in self._batches:
            batch.part()
        for name, total in self._sums.items():
            total.merge(words[name])
        if int(partial["weight"]):
            self._take_largest({name: partial[f"max/{name}"] for name in self._largest})
        self.weight += int(partial["weight"])

    def _words(self, partial: Parameters, name: str) -> dict[str, Tensor]:
        words = {part: partial.get(f"sum/{name}/{part}") for part in ("low", "shift", "high")}
        present = {part: word for part, word in words.items() if word is not None}
        if not {"low", "shift"} <= present.keys() or present["low"].numel() != self._sums[name].size:
            raise SchemaMismatch(f"the partial sum of tensor {name!r} is missing or of another shape")
        return present

    def _start(self, spec: Spec, like: Mapping[str, Tensor], bounds: Mapping[str, float]) -> None:
        self._spec = spec
        for info in spec.entries:
            tensor, rule = like[info.name], self._exchange.rule(info.name)
            if rule == "server":
                still = self.difference and moves(info.name, tensor)
                self._unmoved[info.name] = (torch.zeros_like(tensor) if still else tensor.detach().clone()).cpu()
            elif rule == "average" and info.name not in bounds:
                self._totals[info.name] = torch.zeros(tensor.shape, dtype=torch.float64)
                self.mergeable = False
            elif info.name in bounds and rule != "max":
                self._sums[info.name] = FixedPointSum(tensor.shape, tensor.dtype, bounds[info.name], self._fraction_bits)
            else:
                self._largest[info.name] = tensor.detach().cpu().clone()
        self._finest = max((total.scale for total in self._sums.values()), default=0.0)

    def _place(self) -> None:
        """Give the sums their memory before the first term, in one buffer: of a large one first use is much faster."""
        if not self._batches:
            memory = self.lend(8 * sum(total.size for total in self._sums.values())).view(np.int64)
            whole = [name for name in self._sums if self.difference and is_statistic(name)]
            moved = {name: total for name, total in self._sums.items() if name not in whole}
            size = sum(total.size for total in moved.values())
            self._batches = batches(moved, memory[:size])
            self._moved = len(self._batches)
            self._batches += batches({name: self._sums[name] for name in whole}, memory[size:])

    def _known(self) -> Spec:
        if self._base is not None:
            self.prepare(Spec.of(self._base), extents(self._base))
        if self._spec is None:
            raise ConfigError("FedAvgAggregator(base) needs the round's model before the first add")
        return self._spec

    def _weigh(self, update: Update) -> int:
        value = self.weighting(update) if callable(self.weighting) else update.num_examples
        if self.weighting == "uniform":
            value = _UNIFORM
        if not math.isfinite(value) or value <= 0:
            raise InvalidWeight(f"the weight of client {update.client_id!r} must be a positive number, not {value!r}")
        return max(1, round(value * (1 << self._fraction_bits)))

    def _fold(self, update: Update, weight: int) -> None:
        self._place()
        magnitudes = update.extents or {name: update.extent(name) for name in self._sums}
        term = max(1, round(weight * update.discount))
        self.each([
            Job(batch.memory.nbytes, partial(batch.add, update.parameters, term if at < self._moved else weight, magnitudes))
            for at, batch in enumerate(self._batches)
        ])
        self._take_largest(update.parameters)
        for name, total in self._totals.items():
            total += update.parameters[name].detach().cpu().double() * weight
        self.weight += weight

    def _take_largest(self, parameters: Mapping[str, Tensor]) -> None:
        for name, largest in self._largest.items():
            value = parameters[name].detach().cpu()
            if self.weight and value.is_floating_point():
                value = torch.maximum(largest, value)
            elif self.weight:  # torch lacks maximum() for some unsigned dtypes
                value = torch.from_numpy(np.asarray(np.maximum(largest.numpy(), value.numpy())))
            self._largest[name] = value.clone()

    def _capped(self) -> Iterator[tuple[int, Update]]:
        """Yield the held updates with weights cut so that none exceeds ``max_share`` of the total they then make."""
        heaviest = sorted(self._held, key=lambda held: held[:4], reverse=True)
        cap = _cap([weight for weight, *_ in heaviest], self.weight, self.max_share or 1.0)
        for weight, *_, update in heaviest:
            yield min(weight, cap), update


def _rounded_mean(total: Tensor, weight: int, dtype: torch.dtype) -> Tensor:
    return (total / weight).round().to(dtype)


def _cap(heaviest: list[int], rest: int, share: float) -> int:
    """Return the weight at which the heaviest are cut: the solution of ``cap = share * (sum of all, cut at cap)``."""
    for count, weight in enumerate(heaviest):  # the first `count` are cut
        free = 1 - count * share
        if free <= 0:
            return 1
        cap = share * (rest + sum(heaviest[count:])) / free
        if weight <= cap:
            return weight if count == 0 else max(1, int(cap))
    free = 1 - len(heaviest) * share
    return max(1, int(share * rest / free)) if free > 0 and rest else 1
