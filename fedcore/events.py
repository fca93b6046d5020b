"""What happened in a run, as values that observers receive.

An observer is any callable that takes an event. Observers run on a thread of their own, in order; one that raises is
logged and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from fedcore.messages import Kind, Outcome, Status, Traffic


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. ``at`` is in seconds on the clock of the run, which starts anywhere and never jumps."""

    at: float


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The server listens. ``past`` is what happened so far, if it goes on (``resumed``) with a run that was interrupted.

    If a round was open then, its updates are part of the past, and :class:`RoundOpened` for it comes before this event.
    """

    run_id: str
    address: str
    num_rounds: int
    past: tuple[Event, ...] = ()
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class ClientRegistered(Event):
    """A client joined, or joined again (``again``), which makes its older session invalid."""

    client_id: str
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class ClientLost(Event):
    """A client was silent for longer than its lease; its place in the round is free."""

    client_id: str
    silent: float


@dataclass(frozen=True, kw_only=True)
class ClientEvicted(Event):
    """A client was sent away; its place in the round is free."""

    client_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ClientChanged(Event):
    """A client said what it is doing."""

    client_id: str
    status: Status
    round: int
    step: int
    total: int


@dataclass(frozen=True, kw_only=True)
class RoundOpened(Event):
    """Clients were invited."""

    round: int
    invited: tuple[str, ...]
    target: int
    quorum: int
    deadline: float


@dataclass(frozen=True, kw_only=True)
class TaskAssigned(Event):
    """A client took a task."""

    round: int
    kind: Kind
    client_id: str


@dataclass(frozen=True, kw_only=True)
class TaskReturned(Event):
    """A client gave its task back, or sent an update that cannot be counted."""

    round: int
    kind: Kind
    client_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UpdateAccepted(Event):
    """An update counts."""

    round: int
    kind: Kind
    client_id: str
    num_examples: int
    accepted: int
    target: int


@dataclass(frozen=True, kw_only=True)
class UpdateRefused(Event):
    """An update does not count."""

    round: int
    client_id: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundClosed(Event):
    """No more updates are taken; the outcome follows."""

    round: int
    accepted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RoundCommitted(Event):
    """The round made a model. ``traffic`` is by client; ``seconds`` is from opening to commit."""

    round: int
    digest: str
    accepted: tuple[str, ...]
    missing: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundFailed(Event):
    """The round made no model; the one before stays."""

    round: int
    reason: str
    missing: Mapping[str, str]
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluationClosed(Event):
    """No more evaluations of the round's model are awaited from clients."""

    round: int
    accepted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The model of a round was evaluated; metrics of the clients carry the prefix ``evaluate/``."""

    round: int
    metrics: Mapping[str, float]
    of_clients: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationFailed(Event):
    """The evaluation of a round's model raised or took too long; the round stands."""

    round: int
    reason: str
    of_clients: bool = False


@dataclass(frozen=True, kw_only=True)
class AccessRefused(Event):
    """Somebody asked for what it may not have. ``peer`` is its name, "" if that is not known, ``asked`` the kind of request."""

    peer: str
    address: str
    asked: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Commanded(Event):
    """An admin had the server do something."""

    peer: str
    address: str
    act: str
    client_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class AuditRead(Event):
    """Somebody was given lines of the audit log: those behind its first ``after`` bytes."""

    peer: str
    address: str
    after: int


@dataclass(frozen=True, kw_only=True)
class RunPaused(Event):
    """The run cannot go on, for a ``reason`` that its operator can take away; an empty one: it goes on again."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ServerLeft(Event):
    """The server leaves the run as it stands; the next one with the same state directory goes on with it."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run is over. ``failed`` is why it ended early, or empty."""

    committed: int
    failed: str = ""


Observer: TypeAlias = Callable[[Event], None]
