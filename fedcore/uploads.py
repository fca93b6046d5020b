"""Takes updates in: decoded and checked (large ones within a budget, on threads of their own), committed, and summed up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex

from fedcore.aggregator import Update
from fedcore.budget import Budget
from fedcore.clock import Clock
from fedcore.codec import ZERO, Base, Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.errors import FedcoreError, RemoteError, SessionError, TooLarge, TooMany, TransportError
from fedcore.extents import check_finite
from fedcore.failpoints import reach
from fedcore.intake import Intake, receive
from fedcore.journal import Journal
from fedcore.lane import THREADS, Lane, Lanes
from fedcore.ledger import Entry
from fedcore.messages import Kind, Outcome, Submit, Submitted, TensorInfo, Traffic
from fedcore.parameters import Parameters, Spec, digest
from fedcore.pool import Lender
from fedcore.registry import accepted_codec
from fedcore.round import Ticket
from fedcore.streams import Stream, Streams
from fedcore.tasks import Route, Work, answer, fail
from fedcore.transport import Reply, Request, behind
from fedcore.unfinished import Unfinished
from fedcore.values import check_metrics, check_num_examples

log = logging.getLogger(__name__)

_THREADS = 128  # a reader waits for its client most of the time
_LEAST_BUDGET = 64 << 20
_AT_ONCE = 1 << 20  # bytes of an update that takes less time to take in than is lost by handing it to another thread
_TINY = 1 << 16  # bytes of an update whose sum is worth no hand-over: it waits for others, or for the end of the round
_BATCH = 1 << 20  # bytes of tiny updates that are summed up together


@dataclass(frozen=True)
class Arrival:
    """An admitted update that is not read yet, and who waits for the verdict."""

    ticket: Ticket
    work: Work
    route: Route
    request: Request
    header: Submit
    reply: Future[Reply]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.header.manifest.total_bytes if self.work.upload is None else self.work.upload.nbytes


class Uploads:
    """Takes in admitted updates, as many at a time as the budget has room for; the others wait without memory or a thread.

    Args:
        turn: gives the machine for one turn.
        clock: the time.
        math: the lane that sums.
        accepts: the parts of codec names that are accepted.
        config: the budget, and limits.
        base: returns the payload with a digest that clients were sent, if it is still known.
        noted: told what went over the wire.
        lend: gives the memory that updates lie in, from the first byte to the end of the sum.
        lanes: makes the threads that wait for clients and for the disk.

    Attributes:
        budget: what the updates in progress may occupy together.
        unfinished: what has come of those that broke off.
        streams: the updates in progress and in line.
        journal: where updates are noted.
    """

    def __init__(
        self,
        turn: Callable[[], AbstractContextManager[Coordinator]],
        clock: Clock,
        math: Lane,
        *,
        accepts: tuple[str, ...],
        config: ServerConfig,
        base: Callable[[str], Base | None],
        noted: Callable[[Work, str, Route, Traffic], None],
        lend: Lender,
        lanes: Lanes = THREADS,
    ):
        self._turn, self._clock, self._math, self._accepts = turn, clock, math, accepts
        self._limits, self._base, self._noted, self._lend = config.limits, base, noted, lend
        self._threads = lanes.pool("fedcore-intake", _THREADS)
        self._calm, self._taking = lanes.condition(), set[str]()  # tasks whose answers are just being noted
        self.budget = Budget(config.limits.upload_memory or _LEAST_BUDGET)
        self.unfinished = Unfinished(config.heartbeat_timeout)
        self.streams = Streams(config.limits.streams_per_client, "uploads")
        self.journal = Journal()

    def take(self, arrival: Arrival) -> None:
        """Take an update in when there is room for it, and answer with what became of it.

        Raises:
            TooMany: its client has as many under way as it may.
        """
        nbytes = arrival.nbytes
        if self._limits.upload_memory is None and arrival.work.upload is not None:
            # room for two: one comes in while another is summed up; small answers to other tasks do not take it away
            self.budget.limit = max(self.budget.limit, 2 * nbytes)
        at_once = nbytes <= _AT_ONCE and not self.journal.each_update  # the thread it came on must not wait for a disk
        if at_once and isinstance(arrival.request.body, Sequence):  # it is here, and takes less than a hand-over
            self._take(arrival, 0)
        else:
            newer = TooMany("a newer upload for the same task took the place of this one")
            stream = Stream(arrival.header.session.client_id, arrival.header.task_id, partial(fail, arrival.reply, newer))
            self.streams.enter(stream)
            self.budget.enter(nbytes, partial(self._threads.submit, self._take_turn, arrival, nbytes, stream))

    def close(self) -> None:
        """End the threads, behind the updates in progress."""
        self._threads.shutdown(wait=True)

    def _take_turn(self, arrival: Arrival, nbytes: int, stream: Stream) -> None:
        try:
            if arrival.reply.done():  # nobody waits for it any more
                self.budget.leave(nbytes)
            else:
                self._take(arrival, nbytes)
        finally:
            self.streams.leave(stream)

    def _take(self, arrival: Arrival, nbytes: int) -> None:
        counted = False
        try:
            counted = self._take_in(arrival, nbytes)
        except FedcoreError as error:
            self._reject(arrival, error)
        except Exception:
            name = token_hex(4)
            log.exception("error %s while taking in the update for task %s", name, arrival.ticket.assignment.id)
            self._reject(arrival, RemoteError(f"internal error {name}; the server's log has the details"))
        finally:
            if not counted:
                self.budget.leave(nbytes)

    def _take_in(self, arrival: Arrival, nbytes: int) -> bool:
        """Take an update in; returns whether it is handed on, and with it the care for its memory."""
        if nbytes:  # while it waited in line the round may have closed
            with self._turn() as coordinator:
                admitted = coordinator.admit(arrival.header, self._clock.now())
            if isinstance(admitted, Submitted):
                answer(arrival.reply, Reply(admitted))
                return False
        update = self._read(arrival)
        entry = self._entry(arrival, update)
        with self._alone(arrival.header.task_id):
            noted, counted = entry is not None and self._note(arrival, update, entry), False
            try:
                with self._turn() as coordinator:
                    submitted = coordinator.commit(arrival.ticket, self._clock.now())
                    counts, counted = submitted.outcome is Outcome.ACCEPTED, submitted.counted
                    if counts:  # in this turn, so that no conclusion gets in between
                        self._count(arrival, update, nbytes, entry)
            finally:
                if noted and not counted:
                    self.journal.withdraw(arrival.header.task_id)
        reach("upd.before_ack")
        answer(arrival.reply, Reply(submitted))
        return counts

    @contextmanager
    def _alone(self, task_id: str) -> Iterator[None]:
        """Let no second copy of an update in meanwhile: what is taken back of the one must not be the other's."""
        if not self.journal.each_update:  # nothing is ever taken back
            yield
            return
        with self._calm:
            self._calm.wait_for(lambda: task_id not in self._taking)
            self._taking.add(task_id)
        try:
            yield
        finally:
            with self._calm:
                self._taking.discard(task_id)
                self._calm.notify_all()

    def _entry(self, arrival: Arrival, update: Update) -> Entry | None:
        """Return what is to be noted of an update: nothing if nothing is, or if it is no update of a training round."""
        header, spec = arrival.header, arrival.work.upload
        if not self.journal.lasting or arrival.work.kind is not Kind.FIT or spec is None:
            return None
        with self._turn() as coordinator:
            process = coordinator.roster.instances.get(update.client_id, "")
        name = update.digest or digest(update.parameters, spec)
        return Entry(
            header.task_id, header.round, update.client_id, header.attempt_id, name, header.num_examples, update.metrics,
            arrival.work.number, update.num_examples, process,
        )  # fmt: skip

    def _note(self, arrival: Arrival, update: Update, entry: Entry) -> bool:
        if not self.journal.each_update or arrival.work.upload is None:
            return False
        elapsed = self._clock.now() - arrival.ticket.assignment.collection.opened_at
        return self.journal.accept(entry, update, arrival.work.upload, elapsed)

    def _reject(self, arrival: Arrival, error: FedcoreError) -> None:
        if isinstance(error, SessionError):  # the task is the newer process's now
            fail(arrival.reply, error)
            return
        final = not error.retryable and error.reason != "ROUND_ALREADY_ANSWERED"
        with self._turn() as coordinator:
            refused = coordinator.release(
                arrival.ticket, self._clock.now(), reason=error.reason, message=str(error), final=final
            )
        if isinstance(error, RemoteError) or (isinstance(error, TransportError) and error.retryable):
            fail(arrival.reply, error)  # no verdict on the update
        else:
            answer(arrival.reply, Reply(refused))

    def _read(self, arrival: Arrival) -> Update:
        """Return the update, if everything about it is as it must be; the cheap checks come before the body is read."""
        work, request, header = arrival.work, arrival.request, arrival.header
        check_num_examples(header.num_examples, self._limits.max_examples)
        metrics = check_metrics(header.metrics)
        by_reference = request.peer.by_reference
        codec = None if by_reference else self._codec_of(header.manifest.codec, arrival.route.upload)
        spec = self._expect(header.manifest.tensors, work.upload)
        reach("upd.first_chunk")
        if codec is None:
            parameters = spec.copy(receive(header.manifest, request.body, spec, None), self._lend)
        else:
            parameters = self._receive(arrival, spec, codec)
        reach("upd.last_chunk")
        extents = check_finite(parameters)
        ticket, name = arrival.ticket, header.session.client_id
        weight = ticket.assignment.collection.policy.weight(header.num_examples, work.number - header.round)
        discount = ticket.assignment.collection.policy.discount(work.number - header.round)
        took = max(0.0, self._clock.now() - ticket.assignment.given_at)  # it is never, if it was given before a restart
        update = Update(parameters, weight, name, work.number, metrics, header.digest, extents, discount, took)
        if work.aggregator:
            work.aggregator.check(update)
        return update

    def _receive(self, arrival: Arrival, spec: Spec, codec: Codec) -> Parameters:
        """Take the body in, or the rest of it; what has come is kept if more could."""
        header, base = arrival.header, arrival.header.manifest.base
        intake = self.unfinished.claim(header)
        if intake is None:
            ground = Base.zero(spec) if base == ZERO else self._base(base) if base else None
            intake = Intake(header.manifest, spec, codec, base=ground, lend=self._lend)
        try:
            return intake.take(behind(arrival.request.body, intake.received))
        except FedcoreError:
            if intake.open and intake.received:
                quota = self.budget.limit // 2 if self._limits.resume_memory is None else self._limits.resume_memory
                self.unfinished.keep(header, intake, spec.nbytes, quota=quota, now=self._clock.now())
            raise

    def _codec_of(self, name: str, agreed: Codec | None) -> Codec:
        return agreed if agreed is not None and agreed.name == name else accepted_codec(name, self._accepts)

    def _expect(self, infos: tuple[TensorInfo, ...], wanted: Spec | None) -> Spec:
        """Return what an update will look like, if it is what was wanted, or a first model within the limits."""
        if wanted is not None and infos == wanted.infos:
            return wanted
        limits = self._limits
        most = max(limits.max_tensors, len(wanted.infos) if wanted else 0)
        if len(infos) > most:
            raise TooLarge(f"{len(infos)} tensors are more than {most} (Limits.max_tensors)")
        spec = Spec.checked(infos)
        if wanted is not None:
            wanted.expect(spec)
        elif spec.nbytes > limits.max_model_bytes:
            raise TooLarge(f"a model of {spec.nbytes} bytes is above Limits.max_model_bytes, {limits.max_model_bytes}")
        return spec

    def _count(self, arrival: Arrival, update: Update, room: int, entry: Entry | None) -> None:
        work = arrival.work
        if entry is not None:
            work.entries.append(entry)
        nbytes = Spec.of(update.parameters).nbytes if work.upload is None else work.upload.nbytes
        received = Traffic(bytes_received=arrival.header.manifest.total_bytes, tensor_bytes_received=nbytes)
        self._noted(work, update.client_id, arrival.route, received)
        bare = replace(update, parameters={}, extents={})
        work.updates.append(update if work.kind is Kind.INITIALIZE else bare)
        if work.aggregator is None:
            self.budget.leave(room)
            return
        work.unsummed.append((update, room))
        if room or nbytes > _TINY or len(work.unsummed) * nbytes >= _BATCH:
            self._math.send(self.sum_up, work)

    def sum_up(self, work: Work) -> None:
        """Add the updates that wait for it to the sums of their round; on the mathematics lane."""
        while work.unsummed and work.aggregator:
            room = work.unsummed[0][1]
            try:
                work.aggregator.fold(work.unsummed.popleft()[0])  # and let go of it before others are told of its room
            except Exception as error:
                log.exception("an update of round %d that was acknowledged could not be added", work.number)
                work.failure = work.failure or error
            finally:
                self.budget.leave(room)
