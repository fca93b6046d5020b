"""The conformance suite of strategies, as a plain function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations

import torch

from fedcore.aggregator import Update
from fedcore.extents import check_finite
from fedcore.messages import Kind
from fedcore.parameters import DTYPES, Parameters, Spec, copy_parameters, digest
from fedcore.strategy import Strategy, aggregator_of

_CLIENTS = 4


def check_strategy(
    make: Callable[[Parameters], Strategy], *, seed: int = 0, metrics: Callable[[int], Mapping[str, float]] = lambda index: {}
) -> None:
    """Check that a strategy keeps the promises of :class:`~fedcore.strategy.Strategy`.

    The result looks like the model, is finite, does not depend on the order of the updates, leaves the model and the updates
    as they were, and goes on the same after its state was saved and loaded.

    Args:
        make: builds a fresh strategy for a model.
        seed: of the model and the updates.
        metrics: returns what the client with a number, from 0, has measured, if the strategy goes by that.

    Raises:
        AssertionError: it does not; the message says which promise.
    """
    model = _model(torch.Generator().manual_seed(seed))
    spec = Spec.of(model)
    wanted = make(model).upload_spec(Kind.FIT, spec)
    draws = [torch.Generator().manual_seed(seed + 1 + index) for index in range(_CLIENTS)]
    updates = [_update(model, wanted, index, draw, metrics(index)) for index, draw in enumerate(draws)]
    before = [digest(model, spec), *(digest(u.parameters) for u in updates)]

    results = {_round(make(model), 1, model, list(order), spec)[1] for order in permutations(updates)}
    _claim(len(results) == 1, "the result depends on the order of the updates")
    _claim(before == [digest(model, spec), *(digest(u.parameters) for u in updates)], "it changed its input")

    first, second = make(model), make(model)
    after_one, _ = _round(first, 1, model, updates, spec)
    second.load_state_dict(first.state_dict())
    there, here = _round(first, 2, after_one, updates, spec)[1], _round(second, 2, after_one, updates, spec)[1]
    _claim(there == here, "it goes on differently after state_dict() and load_state_dict()")


def _round(
    strategy: Strategy, number: int, model: Parameters, updates: list[Update], spec: Spec
) -> tuple[Parameters, str]:
    aggregator = aggregator_of(strategy, number, model)
    for update in updates:
        aggregator.check(update)
        aggregator.add(update)
    made = strategy.step(number, model, aggregator.result())
    spec.check(made)
    check_finite(made)
    return copy_parameters(made), digest(made, spec)


def _model(generator: torch.Generator) -> Parameters:
    weight = torch.randn(5, 3, generator=generator)
    return {
        "weight": weight,
        "scale": torch.tensor(0.5),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "tied": weight,
    }


def _update(
    model: Parameters, wanted: Spec, index: int, generator: torch.Generator, metrics: Mapping[str, float]
) -> Update:
    moved = copy_parameters(model)
    for info in wanted.entries:
        if info.name not in moved:
            moved[info.name] = torch.zeros(info.shape, dtype=DTYPES[info.dtype])
    for name, tensor in moved.items():
        if name != "tied" and tensor.is_floating_point():
            tensor += torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    moved["count"] += index
    return Update(moved, 10 + 7 * index, f"client-{index}", 1, metrics, digest(moved))


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"not a conforming strategy: {otherwise}")
