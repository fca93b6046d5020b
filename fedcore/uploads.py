"""Takes updates in: decoded and checked on threads of their own, then committed, then summed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from secrets import token_hex

from fedcore.aggregator import Update
from fedcore.clock import Clock
from fedcore.coordinator import Coordinator
from fedcore.errors import FedcoreError, RemoteError, TooLarge, TransportError
from fedcore.intake import receive
from fedcore.lane import Lane
from fedcore.messages import Kind, Outcome, Submit, check_metrics, check_num_examples
from fedcore.parameters import Spec, check_finite
from fedcore.registry import accepted_codec
from fedcore.round import Ticket
from fedcore.tasks import Traffic, Work, answer, fail
from fedcore.transport import Reply, Request

log = logging.getLogger(__name__)


class Uploads:
    """Takes in admitted updates, ``at_once`` of them at a time; the others wait without holding memory.

    Args:
        turn: gives the machine for one turn.
        clock: the time.
        math: the lane that sums.
        accepts: the parts of codec names that are accepted.
        at_once: how many updates may be in memory, from the first byte to the end of the sum.
        max_examples: the largest ``num_examples`` that is believed.
        max_model_bytes: the largest first model that a client may hand in.

    Attributes:
        bytes_received: bodies of accepted updates.
    """

    def __init__(
        self,
        turn: Callable[[], AbstractContextManager[Coordinator]],
        clock: Clock,
        math: Lane,
        *,
        accepts: tuple[str, ...],
        at_once: int,
        max_examples: int,
        max_model_bytes: int,
    ):
        self.bytes_received = 0
        self._turn, self._clock, self._math, self._accepts = turn, clock, math, accepts
        self._max_examples, self._max_model_bytes = max_examples, max_model_bytes
        self._threads = ThreadPoolExecutor(at_once, "fedcore-intake")
        self._room = threading.Semaphore(at_once)

    def take(
        self, ticket: Ticket, work: Work, traffic: Traffic, request: Request, header: Submit, reply: Future[Reply]
    ) -> None:
        """Take an update in, and answer ``reply`` with what became of it."""
        self._threads.submit(self._take, ticket, work, traffic, request, header, reply)

    def close(self) -> None:
        """End the threads, behind the updates in progress."""
        self._threads.shutdown(wait=True)

    def _take(
        self, ticket: Ticket, work: Work, traffic: Traffic, request: Request, header: Submit, reply: Future[Reply]
    ) -> None:
        self._room.acquire()
        folded: Future[None] | None = None
        try:
            update = self._read(work, request, header)
            with self._turn() as coordinator:
                submitted = coordinator.commit(ticket, self._clock.now())
                if submitted.outcome is Outcome.ACCEPTED:  # in this turn, so that no conclusion gets in between
                    folded = self._count(work, traffic, update, header)
            answer(reply, Reply(submitted))
        except FedcoreError as error:
            self._reject(ticket, reply, error)
        except Exception:
            name = token_hex(4)
            log.exception("error %s while taking in the update for task %s", name, ticket.assignment.id)
            self._reject(ticket, None, RemoteError(f"internal error {name}"))
            fail(reply, RemoteError(f"internal error {name}; the server's log has the details"))
        finally:
            if folded is None:
                self._room.release()
            else:
                folded.add_done_callback(lambda _: self._room.release())

    def _reject(self, ticket: Ticket, reply: Future[Reply] | None, error: FedcoreError) -> None:
        with self._turn() as coordinator:
            final = not error.retryable
            refused = coordinator.release(
                ticket, self._clock.now(), reason=error.reason, message=str(error), final=final
            )
        if reply is None:
            return
        if isinstance(error, TransportError) and error.retryable:  # the body broke off: no verdict on the update
            fail(reply, error)
        else:
            answer(reply, Reply(refused))

    def _read(self, work: Work, request: Request, header: Submit) -> Update:
        """Return the update, if everything about it is as it must be; the cheap checks come before the body is read."""
        check_num_examples(header.num_examples, self._max_examples)
        metrics = check_metrics(header.metrics)
        by_reference = request.peer.by_reference
        codec = None if by_reference else accepted_codec(header.manifest.codec, self._accepts)
        claimed = Spec.checked(header.manifest.tensors)
        spec = self._first_spec(claimed) if work.upload is None else work.upload
        spec.expect(claimed)
        parameters = receive(header.manifest, request.body, spec, codec)
        if by_reference:
            parameters = spec.copy(parameters)
        extents = check_finite(parameters)
        name = header.session.client_id
        update = Update(parameters, header.num_examples, name, work.number, metrics, header.digest, extents)
        if work.aggregator:
            work.aggregator.check(update)
        return update

    def _first_spec(self, spec: Spec) -> Spec:
        if spec.nbytes > self._max_model_bytes:
            raise TooLarge(f"a model of {spec.nbytes} bytes is above max_model_bytes, {self._max_model_bytes}")
        return spec

    def _count(self, work: Work, traffic: Traffic, update: Update, header: Submit) -> Future[None] | None:
        size = header.manifest.total_bytes
        work.bytes_received += size
        traffic.bytes_received += size
        self.bytes_received += size
        work.updates.append(update if work.kind is Kind.INITIALIZE else replace(update, parameters={}, extents={}))
        return self._math.submit(work.aggregator.add, update) if work.aggregator else None
