"""What the robust strategies share: updates lie in a file, and a rule makes one change of what they changed."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedcore.aggregator import Aggregator, CheckingAggregator, Update
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import AggregationError, ConfigError
from fedcore.exchange import Exchange
from fedcore.extents import extents
from fedcore.parameters import DTYPES, Parameters, Spec, digest, moves
from fedcore.robust import Block, Finish, Rows, buckets, mixed, nearest_neighbours, squared_distances
from fedcore.spool import Floats, Spool
from fedcore.strategies.fedavg import EvaluateFn, FedAvg
from fedcore.values import check_number

log = logging.getLogger(__name__)

_BLOCK = 4 << 20  # bytes of all rows' columns that are in memory at once; a rule takes a few times as much to work on them


class Robust(FedAvg):
    """FedAvg with another rule than the mean. All updates weigh the same: what a client says of itself is no lever.

    Floating-point tensors are changed by what the rule makes of the updates' changes; others, and those that the exchange
    has a rule for, become what they do with FedAvg, whose limits on what can be summed hold, too.

    Memory: a few times 4 MiB and the model, whatever the number of clients; the updates lie in an unlinked file in
    ``ServerConfig.map_folder``.

    Args:
        initial_parameters: the model the first round starts from, copied; None asks the first client for its own.
        evaluate_fn: as for :class:`~fedcore.FedAvg`.
        f: how many of a round's clients may be Byzantine.
        pre: what is done before the rule. ``"nnm"``: each update is replaced by the mean of the n - f nearest, itself among
            them (Allouah et al., Fixing by Mixing, AISTATS 2023). ``"bucketing"``: the rule sees means of random buckets
            (Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022), of which f may
            be Byzantine. None: nothing.
        bucket_size: updates in a bucket.
        seed: of the buckets, drawn anew from it in each round, and logged.
        clients_per_round: how many updates close a round.
        min_fit_clients: the fewest updates a round may be made of; None: the fewest that the rule can do with.
        shared: as for :class:`~fedcore.FedAvg`, but for ``weighting`` and ``max_share``.

    Raises:
        ConfigError: an argument makes no sense, or rounds would have too few updates for f.
    """

    numbers: tuple[str, ...] = ()

    def __init__(
        self,
        initial_parameters: Mapping[str, Tensor] | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        f: int = 0,
        pre: Literal["nnm", "bucketing"] | None = None,
        bucket_size: int = 2,
        seed: int = 0,
        clients_per_round: int = 2,
        min_fit_clients: int | None = None,
        **shared: Any,
    ):
        name = type(self).__name__
        if {"weighting", "max_share"} & shared.keys():
            raise ConfigError(f"with {name} all updates weigh the same: leave out weighting and max_share")
        check_number(f"{name} f", f, int, 0)
        check_number(f"{name} bucket_size", bucket_size, int, 1)
        check_number(f"{name} seed", seed, int, 0)
        if pre not in (None, "nnm", "bucketing"):
            raise ConfigError(f"{name} pre must be 'nnm', 'bucketing' or None, not {pre!r}")
        self.f, self.pre, self.bucket_size, self.seed = f, pre, bucket_size, seed
        if shortage := self.shortage(clients_per_round):
            raise ConfigError(f"{shortage}: raise clients_per_round, or lower f")
        if min_fit_clients is None:
            min_fit_clients = next(n for n in range(1, clients_per_round + 1) if not self.shortage(n))
        elif shortage := self.shortage(min_fit_clients):
            raise ConfigError(f"{shortage}: raise min_fit_clients, or lower f")
        super().__init__(initial_parameters, evaluate_fn, min_fit_clients, clients_per_round, **shared)

    @abstractmethod
    def least(self, f: int) -> int:
        """Return the fewest rows that the rule can make something of if f are Byzantine."""

    @abstractmethod
    def plan(self, rows: Rows, f: int) -> Finish:
        """Learn what the rule must of whole rows, and return what it makes of each column."""

    def tolerated(self, count: int) -> int:
        """Return how many of so many updates may be Byzantine."""
        return self.f

    def anchor(self, server_round: int, parameters: Parameters) -> Mapping[str, Tensor]:
        """Return a change that the rule compares the others with; what it leaves out is zero. Called when the round is over."""
        return {}

    def shortage(self, count: int) -> str:
        """Return what is wrong with so many updates, or ""."""
        f = self.tolerated(count)
        rows, needed, what = count, self.least(f), "updates"
        if self.pre == "nnm":
            needed = max(needed, 2 * f + 1)
        elif self.pre == "bucketing":
            rows, what = -(-count // self.bucket_size), f"buckets of {self.bucket_size} updates"
        shown = f"{type(self).__name__} with f={f} needs at least {needed} {what}"
        return "" if rows >= needed else f"{shown}, and of n={count} clients there are {rows}"

    def start_round(self, server_round: int, parameters: Parameters) -> Aggregator:
        """Return an aggregator that keeps the updates in a file."""
        return RobustAggregator(
            parameters,
            partial(self._combine, server_round),
            partial(self.anchor, server_round, parameters),
            self.exchange,
        )

    def aggregate_fit(self, server_round: int, results: list[Update]) -> Parameters | None:
        """Refuse: the rule works on what updates changed of the round's model, which is not given here."""
        raise ConfigError(f"{type(self).__name__} has no aggregate_fit, as it needs the round's model: override step instead")

    def settings(self) -> dict[str, Any] | None:
        """Return the arguments that rounds depend on; None if they cannot be noted."""
        shared = super().settings()
        if shared is None:
            return None
        own = {name: getattr(self, name) for name in ("f", "pre", "bucket_size", "seed", *self.numbers)}
        return {**{name: shared[name] for name in ("min_fit_clients", "clients_per_round")}, **own}

    def _combine(self, server_round: int, rows: Rows) -> Iterator[Floats]:
        if shortage := self.shortage(rows.count):
            raise AggregationError(shortage)
        f = self.tolerated(rows.count)
        if self.pre == "bucketing":
            seed = f"{self.seed}/buckets/{server_round}"
            log.info("round %d: buckets of %d updates, drawn with the seed %r", server_round, self.bucket_size, seed)
            rows = mixed(rows, buckets(rows.count, self.bucket_size, seed))
        elif self.pre == "nnm":
            rows = mixed(rows, nearest_neighbours(squared_distances(rows), f))
        finish = self.plan(rows, f)
        return map(finish, rows.blocks())


class RobustAggregator(CheckingAggregator):
    """Keeps updates in a file, and makes a change of their changes at the end.

    Args:
        base: the model the round starts from.
        combine: makes blocks of the new change, from its first column to its last, of the updates' changes.
        anchor: returns what :attr:`Block.anchor <fedcore.robust.Block.anchor>` is to be.
        exchange: its rules for buffers.
    """

    def __init__(
        self,
        base: Parameters,
        combine: Callable[[Rows], Iterable[Floats]],
        anchor: Callable[[], Mapping[str, Tensor]] = dict,
        exchange: Exchange | None = None,
    ):
        self._base, self._combine, self._anchor, self._exchange = base, combine, anchor, exchange or Exchange()
        self._gate = FedAvgAggregator(base, weighting="uniform", exchange=exchange)  # what it would refuse is refused
        self._spool: Spool | None = None
        self._updates: list[tuple[str, str, float, int]] = []

    def prepare(self, spec: Spec, extents: Mapping[str, float]) -> None:
        """Learn what the model looks like, and begin the file with it."""
        self._gate.difference = self.difference
        self._gate.prepare(spec, extents)
        floating = [info for info in spec.entries if DTYPES[info.dtype].is_floating_point]
        columns = [info for info in floating if self._exchange.rule(info.name) in (None, "average")]
        self._spec, self._columns = spec, [info.name for info in columns]
        self._width = sum(self._base[name].numel() for name in self._columns)
        ruled = {info.name for info in columns}
        self._others = [info.name for info in spec.infos if (info.alias_of or info.name) not in ruled]
        rest = {name: self._base[name] for name in self._others}
        self._rest = FedAvgAggregator(rest, weighting="uniform", exchange=self._exchange)
        self._rest.difference = self.difference
        self._rest.prepare(Spec.of(rest), {name: extents[name] for name in rest if name in extents})
        wide = any(DTYPES[info.dtype] is torch.float64 for info in columns)
        self._spool = Spool(torch.float64 if wide else torch.float32, self.folder)
        self._spool.append(self._origin(name) for name in self._columns)

    def _origin(self, name: str) -> Tensor:
        """Return what an update's tensor is a change of: the round's model, or nothing, if it is a difference already."""
        tensor = self._base[name]
        return torch.zeros_like(tensor) if self.difference and moves(name, tensor) else tensor

    def check(self, update: Update) -> None:
        """Check shape and range of an update.

        Raises:
            UpdateRejected: the update cannot be added.
        """
        self._file()
        self._gate.check(update)

    def fold(self, update: Update) -> None:
        """Write an update that has passed :meth:`check` to the file."""
        row = self._file().append(update.parameters[name] for name in self._columns)
        name = update.digest or digest(update.parameters)
        self._updates.append((update.client_id, name, update.discount, row))
        others = {name: update.parameters[name] for name in self._others}
        measured = {name: update.extents[name] for name in others if name in update.extents}
        self._rest.fold(replace(update, parameters=others, extents=measured))

    def result(self) -> Parameters:
        """Return what the rule makes of the updates.

        Raises:
            AggregationError: there was none, or too few for the rule.
        """
        if not self._updates:
            raise AggregationError("there is nothing to make of no updates")
        spool = self._file()
        anchor = self._anchor()
        compared = [spool.append(anchor.get(n, torch.zeros_like(self._base[n])) for n in self._columns)] if anchor else []
        self._updates.sort()
        order = [row for *_, row in self._updates]
        late = np.array([[discount] for _, _, discount, _ in self._updates])

        def blocks() -> Iterator[Block]:
            for span in self._spans():
                changes = spool.read(order, span)
                changes -= spool.read([0], span)
                yield Block(changes * late, spool.read(compared, span).sum(axis=0))

        try:
            blank = self._spec.blank(self.lend)
            _lay([blank[name] for name in self._columns], self._made(spool, self._combine(Rows(len(order), blocks))))
        finally:
            spool.close()
        return self._spec.tie({**blank, **self._rest.result()})

    def _file(self) -> Spool:
        if self._spool is None:
            self.prepare(Spec.of(self._base), extents(self._base))
        if self._spool is None:
            raise AssertionError("prepare() makes the file")
        return self._spool

    def _spans(self) -> Iterator[slice]:
        size = max(1, _BLOCK // (8 * (len(self._updates) + 2)))
        for start in range(0, self._width, size):
            yield slice(start, min(start + size, self._width))

    def _made(self, spool: Spool, changes: Iterable[Floats]) -> Iterator[Floats]:
        for span, change in zip(self._spans(), changes, strict=True):
            yield change + spool.read([0], span)[0]


def _lay(tensors: Sequence[Tensor], blocks: Iterable[Floats]) -> None:
    """Fill tensors, one after the other, with blocks of numbers, each rounded once."""
    rooms = iter(tensors)
    room = torch.empty(0)
    for block in blocks:
        while len(block):
            while not len(room):
                room = next(rooms).view(-1)
            size = min(len(room), len(block))
            room[:size] = torch.from_numpy(block[:size])
            room, block = room[size:], block[size:]
