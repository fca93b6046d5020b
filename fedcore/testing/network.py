"""A network between fibers: messages take their time, get lost, come twice, and overtake one another, as a seed has it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from fedcore.errors import AddressError, ConnectionLost, DeadlineExceeded, FedcoreError, RemoteError
from fedcore.limits import Limits
from fedcore.messages import Message, Register
from fedcore.security import Identity
from fedcore.testing.scheduler import Fiber, Scheduler
from fedcore.transport import Body, Buffer, Connection, Handler, Listener, Reply, Request, Transport

_ECHO = 50.0  # a second copy takes so many times as long as the first, on average: it comes in other rounds


class Network(Transport):
    """Carries messages between the fibers of a scheduler.

    A message that is lost is a connection that breaks: its sender learns of it after a while, and not whether it arrived. What
    a process sent that has died may arrive much later, but for its registration, which no server could tell from a newer one's.

    Args:
        scheduler: lets the fibers run.
        loss: probability that a message is lost on its way; it holds for requests and for replies.
        duplicate: probability that a request arrives twice.
        delay: seconds that a message takes on average.

    Attributes:
        passing: called with each message when it comes to a client's door: before it is sent, behind that, and with its reply.
        arriving: called with each request when it comes to the server.
    """

    anywhere = "simulated"

    def __init__(self, scheduler: Scheduler, *, loss: float = 0.0, duplicate: float = 0.0, delay: float = 0.05):
        self.scheduler = scheduler
        self.loss, self.duplicate, self.delay = loss, duplicate, delay
        self.passing: Callable[[Message], object] = id
        self.arriving: Callable[[Message], object] = id
        self._door: _Door | None = None
        self._open: dict[_Call, None] = {}

    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Serve the requests that arrive from now on, until the group of the fiber that calls this crashes."""
        if self._door is not None:
            raise AddressError("something listens already")
        fiber = self.scheduler.current
        self._door = _Door(self, handler, fiber.group if fiber else "")
        return self._door

    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Return a connection for fibers."""
        return _Line(self)

    def cut(self, group: str) -> None:
        """Close the door of a group that is no more, and break its connections."""
        if self._door is not None and self._door.group == group:
            self._door = None
        for call in [call for call in self._open if call.at == group]:
            self.later(partial(call.end, ConnectionLost("the server is gone")))

    def later(self, act: Callable[[], object], times: float = 1.0) -> None:
        """Do something after about the time that a message takes."""
        scheduler = self.scheduler
        wait = scheduler.random.expovariate(1 / (times * self.delay)) if self.delay else 0.0
        scheduler.at(scheduler.now + wait, act)

    def carry(self, call: _Call) -> None:
        """Bring a request to the server."""
        self._open[call] = None
        if self._happens(self.loss):
            self.later(partial(call.end, ConnectionLost("the request was lost")))
        else:
            self.later(partial(self._arrive, call))
        if self._happens(self.duplicate):
            self.later(partial(self._arrive, _Call(self, call.request, call.sender, waits=False)), _ECHO)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.scheduler.random.random() < probability

    def _arrive(self, call: _Call) -> None:
        door = self._door
        if isinstance(call.request.message, Register) and call.sender is not None and call.sender.dead:
            return self.forget(call)
        if door is not None:
            self.arriving(call.request.message)
        if door is None or self._door is not door:  # it may have crashed just now
            return self.later(partial(call.end, ConnectionLost("nothing listens")))
        call.at = door.group
        self.scheduler.spawn(f"a request at {door.group}", partial(self._handle, door, call), door.group)
        return None

    def _handle(self, door: _Door, call: _Call) -> None:
        call.future = door.handler(call.request)
        if call.outcome is not None and call.waits:  # nobody does any more
            call.future.cancel()
        call.future.add_done_callback(partial(self._return, call))

    def _return(self, call: _Call, future: Future[Reply]) -> None:
        call.at = ""
        outcome: Reply | FedcoreError
        if future.cancelled():
            outcome = ConnectionLost("the server went away")
        elif self._happens(self.loss):
            outcome = ConnectionLost("the reply was lost")
        else:
            error = future.exception()
            if error is None:
                outcome = future.result()
            else:
                outcome = error if isinstance(error, FedcoreError) else RemoteError(repr(error))
        self.later(partial(call.end, outcome))

    def forget(self, call: _Call) -> None:
        """Take note that a call is over."""
        self._open.pop(call, None)


class _Call:
    """A request under way, and who waits for its reply."""

    def __init__(self, network: Network, request: Request, sender: Fiber | None, *, waits: bool = True):
        self._network, self.request, self.sender, self.waits = network, request, sender, waits
        self.at = ""  # which group has it
        self.future: Future[Reply] | None = None
        self.outcome: Reply | FedcoreError | None = None

    def end(self, outcome: Reply | FedcoreError) -> None:
        self._network.forget(self)
        if self.outcome is None:
            self.outcome = outcome
            if self.waits and self.sender is not None:
                self._network.scheduler.wake(self.sender)

    def give_up(self, error: FedcoreError) -> None:
        if self.outcome is None:
            self.end(error)
            if self.future is not None:
                self.future.cancel()


class _Door(Listener):
    def __init__(self, network: Network, handler: Handler, group: str):
        self._network, self.handler, self.group = network, handler, group

    @property
    def address(self) -> str:
        return self._network.anywhere

    def stop(self, grace: float = 0.0) -> None:
        self._network.cut(self.group)


class _Line(Connection):
    def __init__(self, network: Network):
        self._network = network

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        network, scheduler = self._network, self._network.scheduler
        parts: list[Buffer] = [bytes(part) for part in body]  # what arrives late must not have changed
        call = _Call(network, Request(message, parts, Identity(address=network.anywhere)), scheduler.current)
        until = None if timeout is None else scheduler.now + timeout
        try:
            network.passing(message)
            network.carry(call)
            network.passing(message)
            while call.outcome is None and (until is None or scheduler.now < until):
                scheduler.wait(None if until is None else until - scheduler.now)
            call.give_up(DeadlineExceeded(f"no answer within {timeout} s"))
            network.passing(message)
        finally:
            call.give_up(ConnectionLost("the client is gone"))
        if isinstance(call.outcome, Reply):
            return call.outcome
        raise call.outcome or AssertionError("a call that is over has an outcome")

    def close(self) -> None:
        pass
