"""What a task is about, and what travels down with it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from fedcore.aggregator import Aggregator, Update
from fedcore.broadcast import Broadcast, Payload
from fedcore.codec import Codec
from fedcore.errors import FedcoreError, ProtocolError, RemoteError
from fedcore.lane import THREADS, Lane, Lanes
from fedcore.ledger import Entry
from fedcore.messages import Assigned, Fetch, Kind, Rest, Task, Traffic, Wait
from fedcore.parameters import Parameters, Spec, digest
from fedcore.round import Assignment
from fedcore.strategy import Strategy
from fedcore.streams import Stream, Streams
from fedcore.transport import Buffer, Reply, behind
from fedcore.values import Value, check_config, drawn

log = logging.getLogger(__name__)


@dataclass
class Work:
    """What one collection is about.

    ``difference``: answers are differences to the models that they began with.

    ``upload`` is what answers must look like; None takes any model (the first one). ``failure`` is the first error of the
    aggregator after an update was acknowledged: there can be no model then.
    """

    kind: Kind
    number: int
    parameters: Parameters
    spec: Spec
    digest: str
    upload: Spec | None
    aggregator: Aggregator | None = None
    updates: list[Update] = field(default_factory=list)  # without tensors
    configs: dict[str, dict[str, Value]] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    unsummed: deque[tuple[Update, int]] = field(default_factory=deque)  # with the room each takes of the budget
    failure: Exception | None = None
    entries: list[Entry] = field(default_factory=list)  # what is noted of the updates, if anything is
    difference: bool = False


@dataclass
class Route:
    """How a client is sent models and sends updates, what it holds, and what went over the wire so far."""

    codec: Codec | None  # None: by reference
    upload: Codec | None = None
    deltas: bool = False
    holds: str = ""
    traffic: Traffic = field(default_factory=Traffic)



class Tasks:
    """Prepares tasks on the mathematics lane, where all of a strategy's hooks run, and sends each payload encoded once.

    Args:
        strategy: whose hooks say what travels.
        math: the lane.
        seed: what the seeds in the clients' configs are drawn from.
        shard_bytes: where payloads are cut.
        streams: how many downloads a client may have under way at once.
        delta: what differences to the model before are encoded with; None: none are sent.
        lanes: makes the lane that encodes.

    Attributes:
        works: what each open collection is about.
        traffic: what went over the wire in all.
        downloads: those under way.
    """

    def __init__(
        self,
        strategy: Strategy,
        math: Lane,
        *,
        seed: int,
        shard_bytes: int,
        streams: int,
        delta: Codec | None = None,
        lanes: Lanes = THREADS,
    ):
        self.broadcast = Broadcast(shard_bytes, delta, lanes)
        self.works: dict[tuple[Kind, int], Work] = {}
        self.traffic, self.downloads = Traffic(), Streams(streams, "downloads")
        self._strategy, self._math, self._seed, self._counting = strategy, math, seed, threading.Lock()
        self._described: tuple[Parameters, Spec, str] | None = None  # the last payload that was no model

    def brief(self, assignment: Assignment, route: Route, reply: Future[Reply], fetch: Fetch | None = None) -> None:
        """Answer ``reply`` with the task and its payload, or with what a client fetches of that, when they are ready."""
        self._math.send(self._brief, assignment, route, reply, fetch)

    def count(self, work: Work, client_id: str, route: Route, more: Traffic) -> None:
        """Note what went over the wire: of the run, of the client, and of the client in this collection."""
        with self._counting:
            self.traffic += more
            route.traffic += more
            work.traffic[client_id] = work.traffic.get(client_id, Traffic()) + more

    def _brief(self, assignment: Assignment, route: Route, reply: Future[Reply], fetch: Fetch | None) -> None:
        try:
            work = self.works.get((assignment.kind, assignment.round))
            if work is None:
                return answer(reply, Reply(Wait(assignment.round)))
            task, payload = self._prepare(work, assignment, route)
        except Exception as error:
            log.exception("the strategy could not prepare task %s", assignment.id)
            return fail(reply, RemoteError(f"the server could not prepare the task: {type(error).__name__}"))
        counted, stream = partial(self.count, work, assignment.client_id, route), Stream(assignment.client_id, task.id)
        send = partial(Outgoing, streams=self.downloads, stream=stream, counted=counted)
        return payload.add_done_callback(lambda done: _deliver(task, done, reply, fetch, send))

    def _prepare(self, work: Work, assignment: Assignment, route: Route) -> tuple[Task, Future[Payload]]:
        config = work.configs.get(assignment.client_id)
        if config is None:
            config = work.configs[assignment.client_id] = self._configure(work, assignment)
        down = self._strategy.download(work.kind, work.number, assignment.client_id, work.parameters, route.holds)
        spec, down_digest = (work.spec, work.digest) if down is work.parameters else self._describe(down)
        upload = () if work.upload is None or work.upload == spec else work.upload.infos
        partial = self._strategy.exchange is not None
        task = Task(assignment.id, work.kind, work.number, work.digest, config, upload, work.difference, partial)
        return task, self.broadcast.payload(down, spec, down_digest, route.codec, route.holds if route.deltas else "")

    def _describe(self, down: Parameters) -> tuple[Spec, str]:
        if self._described is None or self._described[0] is not down:
            spec = Spec.of(down)
            self._described = down, spec, digest(down, spec)
        return self._described[1:]

    def _configure(self, work: Work, assignment: Assignment) -> dict[str, Value]:
        configure = self._strategy.configure_evaluate if work.kind is Kind.EVALUATE else self._strategy.configure_fit
        config = {} if work.kind is Kind.INITIALIZE else check_config(configure(work.number, assignment.client_id))
        seed = drawn(self._seed, work.kind, work.number, assignment.client_id)
        return {**config, "round": work.number, "seed": seed}


@dataclass(frozen=True)
class Outgoing:
    """A payload on its way down, from ``offset`` bytes on; it is counted when it is sent, as often as that happens.

    It is under way from the first buffer until the last one was taken, or the iterator is closed.
    """

    payload: Payload
    offset: int
    streams: Streams
    stream: Stream
    counted: Callable[[Traffic], None]

    def __iter__(self) -> Iterator[Buffer]:
        self.streams.enter(self.stream)
        try:
            nbytes, spec = self.payload.manifest.total_bytes, self.payload.received.spec
            self.counted(Traffic(bytes_sent=nbytes - self.offset, tensor_bytes_sent=0 if self.offset else spec.nbytes))
            yield from behind(self.payload.body, self.offset)
        finally:
            self.streams.leave(self.stream)


def _deliver(
    task: Task, encoded: Future[Payload], reply: Future[Reply], fetch: Fetch | None, send: Callable[[Payload, int], Outgoing]
) -> None:
    if error := encoded.exception():
        log.error("encoding failed", exc_info=error)
        return fail(reply, RemoteError("the server could not encode the model"))
    payload = encoded.result()
    manifest = payload.manifest
    if fetch is None:
        return answer(reply, Reply(Assigned(task, manifest), send(payload, 0)))
    if fetch.total_bytes != manifest.total_bytes or not 0 <= fetch.offset <= manifest.total_bytes:
        of = f"the body has {manifest.total_bytes} bytes; there is none of {fetch.total_bytes} with a rest at {fetch.offset}"
        return fail(reply, ProtocolError(f"{of}: pull again", reason="BAD_OFFSET"))
    return answer(reply, Reply(Rest(manifest.total_bytes), send(payload, fetch.offset)))


def answer(future: Future[Reply], reply: Reply) -> None:
    """Answer a request, unless it was answered already, or whoever made it has gone."""
    with suppress(InvalidStateError):
        future.set_result(reply)


def fail(future: Future[Reply], error: FedcoreError) -> None:
    """Answer a request with an error, unless it was answered already, or whoever made it has gone."""
    with suppress(InvalidStateError):
        future.set_exception(error)

