"""The contract of an aggregator, which folds many updates into one.

The result must not depend on the order of :meth:`Aggregator.add`, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from fedcore.errors import AggregationError, ConfigError
from fedcore.extents import extent
from fedcore.parameters import Parameters, Spec, moves
from fedcore.pool import Lender, borrow


@dataclass(frozen=True)
class Update:
    """What one client made of one round's model. Unpacks as ``parameters, num_examples``.

    Attributes:
        parameters: the tensors; see :attr:`Aggregator.difference`.
        num_examples: what they were made of; less if the policy gives late updates a smaller weight.
        client_id: whose it is.
        round: that it counts in.
        metrics: what the client measured.
        digest: BLAKE3 of the tensors, or "".
        extents: the largest magnitude in each floating-point tensor, if somebody has measured them.
        discount: what a difference is to be multiplied by, beside its weight, because it is late.
        seconds: from the task to the update, over the network both ways; 0 where that is not known any more.
    """

    parameters: Parameters
    num_examples: int
    client_id: str = ""
    round: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""
    extents: Mapping[str, float] = field(default_factory=dict, repr=False)
    discount: float = 1.0
    seconds: float = 0.0

    def extent(self, name: str) -> float:
        """Return the largest magnitude in a tensor; looked up if it was measured when the update was taken in."""
        return self.extents[name] if name in self.extents else extent(self.parameters[name])

    def __iter__(self) -> Iterator[Parameters | int]:
        yield self.parameters
        yield self.num_examples

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Parameters | int:
        return (self.parameters, self.num_examples)[index]


Result: TypeAlias = "Update | tuple[Parameters, int]"


@dataclass(frozen=True)
class Job:
    """A piece of arithmetic that shares nothing with others of its list; ``nbytes`` is what it reads."""

    nbytes: int
    run: Callable[[], object]


def in_turn(jobs: Sequence[Job]) -> None:
    """Do jobs one after the other."""
    for job in jobs:
        job.run()


class Aggregator(ABC):
    """Folds updates into one payload. One thread at a time calls it.

    Attributes:
        mergeable: whether :meth:`partial` and :meth:`merge` work.
        retains: whether it keeps the updates' tensors beyond :meth:`add`.
        difference: whether updates are differences to the models that they began with, as they are at an asynchronous pace,
            and :meth:`result` is one to the round's; the server says so before anything else. What is not trained
            (:func:`fedcore.parameters.moves`) is itself even then.
        each: does a list of jobs; the server hands in one that uses several cores.
        lend: gives large memory; the server hands in one that takes it from files where it is told to.
        folder: where one that writes updates to files is to do so; None: the system's folder for temporary files.
    """

    mergeable: bool = False
    retains: bool = False
    difference: bool = False
    each: Callable[[Sequence[Job]], None] = staticmethod(in_turn)
    lend: Lender = staticmethod(borrow)
    folder: str | None = None

    def prepare(self, spec: Spec, extents: Mapping[str, float]) -> None:
        """Learn what is known of the round's model before the first update: what it looks like, and its magnitudes.

        Args:
            spec: of the model.
            extents: the largest magnitude in each floating-point tensor.
        """

    def check(self, update: Update) -> None:
        """Say whether :meth:`add` would take the update; asked before the update is acknowledged.

        Raises:
            UpdateRejected: it would not.
        """

    @abstractmethod
    def add(self, update: Update) -> None:
        """Fold an update in. Order must not matter."""

    @abstractmethod
    def result(self) -> Parameters:
        """Return what the updates add up to; called once, after the last :meth:`add`.

        Raises:
            AggregationError: the updates add up to nothing.
        """

    def fold(self, update: Update) -> None:
        """Add an update that has passed :meth:`check`; a place to leave out what would be checked twice."""
        self.add(update)

    def aggregate(self, updates: Iterable[Result]) -> Parameters:
        """Add each update and return the result."""
        for update in updates:
            self.add(as_update(update))
        return self.result()

    def partial(self) -> Parameters:
        """Return the exact state, never a rounded mean, for another aggregator of the same round to :meth:`merge`."""
        raise ConfigError(f"{type(self).__name__} has no partial state: it needs every update in one place")

    def merge(self, partial: Parameters) -> None:
        """Fold in what another aggregator's :meth:`partial` returned."""
        raise ConfigError(f"{type(self).__name__} has no partial state: it needs every update in one place")


class CheckingAggregator(Aggregator):
    """One that adds an update by checking it and folding it in; what has been checked is folded in alone."""

    def add(self, update: Update) -> None:
        """Fold an update in.

        Raises:
            UpdateRejected: it cannot be added; nothing has changed.
        """
        self.check(update)
        self.fold(update)

    @abstractmethod
    def fold(self, update: Update) -> None:
        """Fold in an update that has passed :meth:`check`."""


def as_update(result: Result) -> Update:
    """Return a ``(parameters, num_examples)`` pair as an Update."""
    if isinstance(result, Update):
        return result
    parameters, num_examples = result
    return Update(parameters, num_examples)


def discounted(update: Update) -> Update:
    """Return a late update with its differences multiplied by its discount."""
    if update.discount == 1.0:
        return update
    scaled = {n: t * update.discount if moves(n, t) else t for n, t in update.parameters.items()}
    return replace(update, parameters=scaled, discount=1.0, extents={}, digest="")


class Gather(Aggregator):
    """Keeps all updates and hands them to a function at once, sorted by client id. Memory: one model an update."""

    retains = True

    def __init__(self, combine: Callable[[list[Update]], Parameters | None]):
        self._combine = combine
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep the update."""
        self._updates.append(discounted(update))

    def result(self) -> Parameters:
        """Return what the function makes of the updates.

        Raises:
            AggregationError: it made nothing.
        """
        combined = self._combine(sorted(self._updates, key=lambda u: u.client_id))
        if combined is None:
            raise AggregationError(f"the strategy made no model of {len(self._updates)} updates")
        return combined
