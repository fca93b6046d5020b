"""What the rows of a ledger say, read back: what cannot have been written is damage, and no error of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcore.aggregator import Update
from fedcore.database import damaged
from fedcore.errors import FedcoreError
from fedcore.messages import Manifest, TensorInfo
from fedcore.parameters import Parameters
from fedcore.policy import RoundPolicy

_SENSELESS = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Entry:
    """An update that counts, or will: everything but its tensors.

    Attributes:
        task_id: what it answers.
        round: the one it was made for.
        client_id: whose it is.
        attempt_id: of the time the client trained for it.
        digest: of its tensors.
        num_examples: what the client said.
        metrics: what the client measured.
        counted: the round it counts in.
        weight: the number of examples it counts with.
        instance: the process of the client that made it.
    """

    task_id: str
    round: int
    client_id: str
    attempt_id: str
    digest: str
    num_examples: int
    metrics: Mapping[str, float]
    counted: int
    weight: int
    instance: str = ""

    def update(self, parameters: Parameters, policy: RoundPolicy) -> Update:
        """Return it with its tensors, as it was before it was noted."""
        discount = policy.discount(self.counted - self.round)
        return Update(
            parameters, self.weight, self.client_id, self.counted, self.metrics, self.digest, discount=discount
        )


@dataclass(frozen=True)
class Page:
    """One round.

    Attributes:
        number: of the round; 0 stands for the first model.
        state: open, closed, committed or failed.
        base: digest of the model it starts from.
        model: digest of the one it made, or "".
        memory: digest of the tensors that the strategy remembers after it, or "".
        invited: the clients that were invited when it opened.
        elapsed: seconds it had lasted when something was last noted of it.
        facts: of its outcome.
        metrics: of its evaluation.
    """

    number: int
    state: str
    base: str
    model: str = ""
    memory: str = ""
    invited: tuple[str, ...] = ()
    elapsed: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Take whatever is wrong with what was read from ``folder`` for what it is.

    Raises:
        StateError: it makes no sense.
    """
    try:
        yield
    except FedcoreError:
        raise
    except _SENSELESS as error:
        raise damaged(folder, f"ledger.db says what makes no sense ({type(error).__name__}: {error!s:.200})") from error


def page_of(row: tuple[Any, ...]) -> Page:
    """Return a round as it was noted."""
    number, state, base, model, memory, invited, elapsed, facts, metrics = row
    _check(row[:5], int, str, str, str, str)
    names = tuple(listed(invited))
    return Page(number, state, base, model, memory, names, float(elapsed), mapping(facts), _measured(metrics))


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return an update as it was noted."""
    task, made_for, client, attempt, digest, examples, metrics, counted, weight, instance = row
    _check(row[:6] + row[7:], str, int, str, str, str, int, int, int, str)
    return Entry(task, made_for, client, attempt, digest, examples, _measured(metrics), counted, weight, instance)


def manifest_of(text: str) -> Manifest:
    """Return how a file is to be read."""
    facts = mapping(text)
    tensors = tuple(TensorInfo(name, dtype, tuple(shape), alias) for name, dtype, shape, alias in facts.pop("tensors"))
    for info in tensors:
        _check((info.name, info.dtype, info.alias_of, *info.shape), str, str, str, *(int for _ in info.shape))
    made = Manifest(**{**facts, "frames": tuple(facts["frames"]), "tensors": tensors})
    _check((made.codec, made.shard_bytes, made.digest, made.base), str, int, str, str)
    _check(made.frames, *(int for _ in made.frames))
    return made


def mapping(text: str) -> dict[str, Any]:
    """Return what a text says, which must be facts by name."""
    found = json.loads(text)
    _check([found], dict)
    return dict(found)


def listed(text: str) -> list[str]:
    """Return what a text says, which must be a list of names."""
    found = json.loads(text)
    _check([found], list)
    _check(found, *(str for _ in found))
    return list(found)


def _measured(text: str) -> dict[str, float]:
    found = mapping(text)
    for value in found.values():
        _check([value], int if type(value) is int else float)
    return found


def _check(values: Any, *kinds: type) -> None:
    for value, kind in zip(values, kinds, strict=True):
        if type(value) is not kind:
            raise TypeError(f"{value!r:.40} where {kind.__name__} was due")
