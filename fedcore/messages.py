"""Each request and each reply, as frozen values: what crosses a transport besides frames.

Nothing here knows a tensor: a payload is described by names, dtype names and sizes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from fedcore.errors import FedcoreError
from fedcore.values import Config

PROTOCOL_VERSION = 1
"""The version of the wire contract this build speaks; ``protos/fedcore.proto`` says what each changed."""


class Status(StrEnum):
    """What a client is doing, as it tells the server with every heartbeat."""

    FETCHING_MODEL = "fetching_model"
    TRAINING = "training"
    SUBMITTING_UPDATE = "submitting_update"
    WAITING = "waiting"
    IDLE = "idle"
    ERROR = "error"


class Kind(StrEnum):
    """What a task asks for."""

    FIT = "fit"
    EVALUATE = "evaluate"
    INITIALIZE = "initialize"


class Directive(StrEnum):
    """What the server wants of a client, in every answer it gives."""

    CONTINUE = "continue"
    ABORT_TASK = "abort_task"
    STOP = "stop"


class Act(StrEnum):
    """What an admin has a server do."""

    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    EVICT = "evict"


class Outcome(StrEnum):
    """What became of a submitted update. Only ``accepted`` is counted, and it is counted once."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"
    FUTURE = "future"
    NOT_SELECTED = "not_selected"
    CLOSED = "closed"
    REJECTED = "rejected"


class TensorInfo(NamedTuple):
    """One tensor of a payload: its name, dtype (torch's name, without ``torch.``), shape, and the tensor it is tied to."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    alias_of: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a body is to be read.

    Attributes:
        codec: the codec's full name.
        shard_bytes: where tensors were cut into shards.
        frames: the length of each frame in bytes.
        digest: BLAKE3 of the payload as it must come out; "" when objects are handed over instead of bytes.
        tensors: what the payload looks like.
        base: digest of the payload that the frames are differences from; "" when they stand for themselves.
    """

    codec: str
    shard_bytes: int
    frames: tuple[int, ...]
    digest: str = ""
    tensors: tuple[TensorInfo, ...] = ()
    base: str = ""

    @property
    def total_bytes(self) -> int:
        """Length of the body on the wire."""
        return sum(self.frames)


@dataclass(frozen=True, slots=True)
class Session:
    """Who speaks: the run it joined, its name, and the token it was given when it registered."""

    run_id: str
    client_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Register:
    """Asks to join. ``codec`` is what the client wants to send ("" for the server's own).

    ``instance`` names the process: the same whenever it registers again, another one after a restart of the client.
    """

    client_id: str
    codec: str = ""
    accepts: tuple[str, ...] = ()
    evaluates: bool = False
    protocol_version: int = PROTOCOL_VERSION
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """The welcome: the session to speak under, the codec to send with, how often to beat and how long silence is fine (s).

    When the server cannot be reached, attempts are spread over ``spread`` seconds: it grows with the number of clients.
    With a ``delta_codec``, a client that keeps the last model may be sent the difference to the next instead of the whole.
    One that is told ``keeps`` keeps its last update: after a crash the server may ask for the same task again.
    """

    session: Session
    codec: str
    heartbeat_interval: float
    heartbeat_timeout: float
    delta_codec: str = ""
    keeps: bool = False
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Pull:
    """Asks for a task; the server holds the answer back up to ``wait`` seconds until there is one.

    ``holds`` is the digest of the model that the client still has, or "".
    """

    session: Session
    wait: float = 0.0
    holds: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for the body of a task that was assigned already, of ``total_bytes`` bytes, from ``offset`` bytes on."""

    session: Session
    task_id: str
    total_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One assignment to one client: ``upload`` is empty when it looks like the download, ``difference`` as in Aggregator."""

    id: str
    kind: Kind
    round: int
    base_digest: str = ""
    config: Config = field(default_factory=dict)
    upload: tuple[TensorInfo, ...] = ()
    difference: bool = False
    partial: bool = False  # the model is a part of the client's: see Exchange


@dataclass(frozen=True, slots=True)
class Assigned:
    """A task, and how to read the body that comes with it."""

    task: Task
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Rest:
    """The rest of a body of ``total_bytes`` bytes, which comes with it."""

    total_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet: pull again."""

    round: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Submit:
    """The header of an update: everything that is judged before a byte of the body is read."""

    session: Session
    task_id: str
    round: int
    attempt_id: str
    base_digest: str
    num_examples: int
    manifest: Manifest
    metrics: Config = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """BLAKE3 of the update."""
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of an update, and why."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    round: int = 0
    directive: Directive = Directive.CONTINUE

    @property
    def counted(self) -> bool:
        """Whether the update is part of the round: accepted now, or accepted before."""
        return self.outcome in (Outcome.ACCEPTED, Outcome.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life. With status ``error`` and a ``task_id`` it also gives the task back, ``message`` saying why."""

    session: Session
    status: Status
    step: int = 0
    total: int = 0
    round: int = 0
    task_id: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class BeatReply:
    """The answer to a beat; ``heartbeat_interval``, if it is not 0, is the time to the next in seconds; see ``Registered``."""

    acknowledged: bool
    directive: Directive = Directive.CONTINUE
    message: str = ""
    heartbeat_interval: float = 0.0
    spread: float = 0.0

    @property
    def should_stop(self) -> bool:
        """Whether the client is to end."""
        return self.directive is Directive.STOP


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Asks how the run stands."""


@dataclass(frozen=True, slots=True)
class Command:
    """Has the server do something: end the run, open no more rounds or open them again, or send ``client_id`` away.

    ``for_good``: it cannot come back for as long as this server runs; else it may register again.
    """

    act: Act
    client_id: str = ""
    reason: str = ""
    for_good: bool = True


@dataclass(frozen=True, slots=True)
class ModelQuery:
    """Asks for the last model of the run, whatever it is: how it is to be read, and then, by ``digest``, for its body.

    Of that, ``total_bytes`` bytes long, comes what is behind ``offset``.
    """

    digest: str = ""
    total_bytes: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """The last model of the run, made by ``round`` (0: it is the one that the run began with), and how to read its body."""

    round: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Asks for lines of the audit log: those that begin at its byte ``after``, or behind it."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class AuditPage:
    """The next whole lines of the audit log, as they are in the file, and how many bytes of it there are in all.

    There is no line in it if none is left; else at least one, and no more than fit into a page.
    """

    lines: bytes
    total: int


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands for what could not be read, with the problem; or, without one, was not, for nobody knows who asked."""

    problem: FedcoreError | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The server did what it was told."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of bodies as the server sees them: on the wire, and of the tensors in them, that is before the codec."""

    bytes_sent: int = 0
    bytes_received: int = 0
    tensor_bytes_sent: int = 0
    tensor_bytes_received: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.bytes_sent + other.bytes_sent, self.bytes_received + other.bytes_received,
            self.tensor_bytes_sent + other.tensor_bytes_sent, self.tensor_bytes_received + other.tensor_bytes_received,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One client as the server sees it; ``silent`` is the number of seconds since it was last heard."""

    client_id: str
    status: Status
    round: int
    step: int
    total: int
    silent: float
    traffic: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How a run stands. ``encodings`` counts how often a model was encoded: once a codec and round, however many ask.

    ``refused`` counts what was refused since the server started, by reason; a client is not told.
    """

    run_id: str
    phase: str
    round: int
    committed: int
    num_rounds: int
    accepted: int
    target: int
    codec: str
    elapsed: float
    clients: tuple[ClientStatus, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    traffic: Traffic = Traffic()
    encodings: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


Message: TypeAlias = Register | Pull | Fetch | Submit | Beat | StatusQuery | ModelQuery | AuditQuery | Command | Unread
Answer: TypeAlias = (
    Registered | Assigned | Rest | Wait | Finished | Submitted | BeatReply | ServerStatus | Committed | AuditPage | Done
)
