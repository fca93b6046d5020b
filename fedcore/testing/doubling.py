"""A proxy that makes every request twice, as a network does that repeats what it carries."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias

from fedcore.access import claimed_by
from fedcore.errors import ConfigError, ConnectionLost, FedcoreError, ProtocolError
from fedcore.messages import Assigned, Fetch, Message, Register, Rest
from fedcore.tasks import answer, fail
from fedcore.transport import Buffer, Listener, Reply, Request, Transport, behind

Order: TypeAlias = Literal["sequence", "concurrent"]
_Outcome: TypeAlias = Reply | FedcoreError

_THREADS = 256  # a pull holds one or two for as long as it waits


class Doubling(Listener):
    """Listens, makes every request that comes in twice to a server, and answers with one of the two replies.

    >>> with Doubling(wire, server.address, "concurrent") as doubling:
    ...     start_client(doubling.address, client, "client-1", transport=wire)

    Both requests have the whole body, and of both the whole reply is read. The answer is drawn from the two, except that

    - an error is the answer only if both requests failed;
    - to register twice fences the first session: this is done in sequence, whatever the order, and the second reply is the
      answer, even if it is an error;
    - of two pulls at the same time the server sends the older one away with nothing to do. That may be the answer, as soon as
      the other one has come back, too: the client pulls again and is given the same task;
    - a body that travels apart from its pull (:class:`~fedcore.messages.Fetch`) is the one that came with the pull.

    Args:
        transport: speaks to both sides.
        upstream: address of the server.
        order: ``"sequence"``: the second request is made when the first is answered. ``"concurrent"``: both at once.
        reorder: probability that a request is held until one of another client is answered.
        hold: seconds that it is held at most.
        address: where to listen; None: anywhere.
        seed: of the draws, made in the order in which requests come in.

    Attributes:
        doubled: how many requests were made twice, by name of the message.

    Raises:
        ConfigError: there is no such order.
        AddressError: an address cannot be used.
    """

    def __init__(
        self,
        transport: Transport,
        upstream: str,
        order: Order = "sequence",
        *,
        reorder: float = 0.0,
        hold: float = 0.5,
        address: str | None = None,
        seed: int = 0,
    ):
        if order not in ("sequence", "concurrent"):
            raise ConfigError(f"order must be 'sequence' or 'concurrent', not {order!r}")
        self._order, self._reorder, self._hold = order, reorder, hold
        self._random = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self.doubled: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()  # by client
        self._pulled: dict[str, Reply] = {}  # by client: the last task, with its body
        self._condition = threading.Condition()
        self._stopped = False
        self._threads = ThreadPoolExecutor(_THREADS, "fedcore-doubling")
        self._upstream = transport.connect(upstream)
        try:
            self._listener = transport.listen(transport.anywhere if address is None else address, self._handle)
        except BaseException:
            self._end()
            raise

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self._listener.address

    def stop(self, grace: float = 0.0) -> None:
        """Take no new requests, give those in progress ``grace`` seconds, then cut them off. May be called twice."""
        self._listener.stop(grace)
        self._end()

    def _end(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._upstream.close()
        self._threads.shutdown()

    # --- one request ---

    def _handle(self, request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        with self._condition:
            which, held = self._random.randrange(2), self._random.random() < self._reorder
            if self._stopped:
                fail(future, ConnectionLost("the proxy was stopped"))
            else:
                self._threads.submit(self._serve, request, future, which, held)
        return future

    def _serve(self, request: Request, future: Future[Reply], which: int, held: bool) -> None:
        message = request.message
        try:
            body = list(request.body)
        except FedcoreError as error:
            return self._settle(message, future, error)
        if held:
            self._let_pass(claimed_by(message))
        if isinstance(message, Fetch):
            return self._settle(message, future, self._kept(message))

        def choose(first: _Outcome, second: _Outcome) -> None:
            outcomes = (first, second)
            good = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
            drawn = good[0] if len(good) == 1 else outcomes[which]
            self._settle(message, future, second if isinstance(message, Register) else drawn)

        with self._condition:
            self.doubled[type(message).__name__] += 1
        if self._order == "concurrent" and not isinstance(message, Register):
            twin = self._threads.submit(self._forward, message, body)
            first = self._forward(message, body)
            return twin.add_done_callback(lambda done: choose(first, done.result()))
        return choose(self._forward(message, body), self._forward(message, body))

    def _forward(self, message: Message, body: list[Buffer]) -> _Outcome:
        try:
            reply = self._upstream.request(message, body)
            return Reply(reply.message, list(reply.body))
        except FedcoreError as error:
            return error

    def _kept(self, fetch: Fetch) -> _Outcome:
        reply = self._pulled.get(fetch.session.client_id)
        if reply and isinstance(reply.message, Assigned) and reply.message.task.id == fetch.task_id:
            return Reply(Rest(reply.message.manifest.total_bytes), behind(reply.body, fetch.offset))
        return ProtocolError("another task was pulled meanwhile", reason="NOT_SELECTED")

    def _let_pass(self, name: str) -> None:
        def others() -> int:
            return self._answered.total() - self._answered[name]

        with self._condition:
            before = others()
            self._condition.wait_for(lambda: self._stopped or others() > before, self._hold)

    def _settle(self, message: Message, future: Future[Reply], outcome: _Outcome) -> None:
        name = claimed_by(message)
        with self._condition:
            if isinstance(outcome, Reply) and isinstance(outcome.message, Assigned):
                self._pulled[name] = outcome
            self._answered[name] += 1
            self._condition.notify_all()
        if isinstance(outcome, Reply):
            answer(future, outcome)
        else:
            fail(future, outcome)
