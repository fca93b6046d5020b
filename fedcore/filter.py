"""The contract of a filter: it changes what an update means, one way, at either end or both.

Rule of thumb: what has an inverse at the other end is a codec; what has none is a filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedcore.errors import ConfigError
from fedcore.parameters import Parameters, changed
from fedcore.values import drawn


@dataclass(frozen=True)
class Context:
    """What a filter may know of the update.

    Attributes:
        round: the number of the round.
        seed: for whatever the filter draws; the same when the round is repeated. The server knows it, at both ends.
        client_id: whose update it is; "" of an aggregate.
        updates: of how many updates it is made: 1 at a client.
    """

    round: int
    seed: int
    client_id: str = ""
    updates: int = 1


class Filter:
    """One object for both ends: the client's list is gone through in order, and the server's backwards.

    Both hooks are given what floating-point tensors *changed* of the round's model; other tensors pass by. They return a new
    change, and leave the one they are given alone.
    """

    def outgoing(self, change: Parameters, context: Context) -> Parameters:
        """Return what a client's update is to change, before it is encoded."""
        return change

    def incoming(self, change: Parameters, context: Context) -> Parameters:
        """Return what the aggregate is to change, before the strategy's step."""
        return change


def outgoing(filters: Sequence[Filter], made: Parameters, base: Parameters, context: Context) -> Parameters:
    """Return a client's update as its filters leave it.

    Args:
        filters: in the order in which they go over it.
        made: the update.
        base: the model that it began with.
        context: of the update.

    Raises:
        ConfigError: the update has none of the model's tensors.
    """
    change = _change(made, base)
    for each in filters:
        change = each.outgoing(change, context)
    return {**made, **_added(base, change)}


def incoming(
    filters: Sequence[Filter], made: Parameters, base: Parameters, *, difference: bool, seed: int, number: int, updates: int
) -> Parameters:
    """Return a round's aggregate as the strategy's step is to see it: a model, as the server's filters leave it.

    Args:
        filters: the last one goes over it first.
        made: the aggregate.
        base: the model that the round started from.
        difference: whether the aggregate is a difference to that.
        seed: the run's.
        number: of the round.
        updates: of how many updates the aggregate is made.

    Raises:
        ConfigError: there are filters, and the aggregate has none of the model's tensors.
    """
    if difference:
        made = changed(base, made)
    if not filters:
        return made
    change, context = _change(made, base), Context(number, drawn(seed, "filters", number), updates=updates)
    for each in reversed(filters):
        change = each.incoming(change, context)
    return {**made, **_added(base, change)}


def _change(made: Parameters, base: Parameters) -> Parameters:
    """Return what the floating-point tensors of the model changed; groups beside the model are none of it."""
    change = {name: value - base[name] for name, value in made.items() if name in base and value.is_floating_point()}
    if not change:
        raise ConfigError("filters go over what the model's tensors change, and none of them travels: leave out filters=")
    return change


def _added(base: Parameters, change: Parameters) -> Parameters:
    return {name: base[name] + value for name, value in change.items()}
