"""Takes clients in: agrees with each on how models travel, gives it a session, and has noted which process it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from secrets import token_hex

from fedcore.clock import Clock
from fedcore.codec import REFERENCE, Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.errors import CodecRefused, FedcoreError, ProtocolError
from fedcore.journal import Journal
from fedcore.lane import THREADS, Lanes
from fedcore.messages import PROTOCOL_VERSION, Register, Registered
from fedcore.registry import accepted_codec, delta_codec
from fedcore.tasks import Route, answer, fail
from fedcore.transport import Reply, Request

_BEATS_AT_ONCE = 250.0  # beats a second that the server asks for at most, however many clients there are

_LONGEST_INSTANCE = 64


class Reception:
    """Where clients register.

    Args:
        turn: gives the machine for one turn.
        clock: the time.
        config: intervals.
        codec: what models are sent with.
        accepts: the parts of codec names that are accepted.
        lanes: makes the lane.

    Attributes:
        routes: how each client is reached.
        delta: what differences are sent with, or None.
        journal: where processes are noted.
        noted: by client, the processes that are.
        noting: the lane that waits for the disk.
    """

    def __init__(
        self,
        turn: Callable[[], AbstractContextManager[Coordinator]],
        clock: Clock,
        config: ServerConfig,
        codec: Codec,
        accepts: tuple[str, ...],
        lanes: Lanes = THREADS,
    ):
        self.routes: dict[str, Route] = {}
        self.noted: dict[str, list[str]] = {}
        self.delta = delta_codec(config.delta_codec)
        self.journal, self.noting = Journal(), lanes.lane("fedcore-noting")
        self._turn, self._clock, self._codec, self._accepts = turn, clock, codec, accepts
        self._interval, self._lease = config.heartbeat_interval, config.heartbeat_timeout

    def register(self, request: Request, message: Register, future: Future[Reply]) -> None:
        """Take a client in.

        Raises:
            ProtocolError: it speaks another version of the protocol, or knows no codec that is spoken here.
            ConfigError: its name is none.
            Fenced: a newer process of this client is known.
        """
        if message.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"protocol version {message.protocol_version} is not spoken here, only {PROTOCOL_VERSION}",
                reason="PROTOCOL_VERSION",
            )
        if len(message.instance) > _LONGEST_INSTANCE:
            raise ProtocolError(f"the name of a process has {len(message.instance)} characters, more than {_LONGEST_INSTANCE}")
        down, up = self._negotiate(request, message)
        delta = self._delta_for(message) if down else ""
        with self._turn() as coordinator:
            roster, name = coordinator.roster, message.client_id
            session = coordinator.register(
                name, token_hex(16), instance=message.instance, evaluates=message.evaluates, now=self._clock.now()
            )
            processes, interval = roster.processes(name), self.interval(len(roster.members))
            self.routes = {n: r for n, r in self.routes.items() if n in roster.members}
            traffic = self.routes.get(name, Route(None)).traffic
            self.routes[name] = Route(down, up, bool(delta), traffic=traffic)
        codec = up.name if up else REFERENCE
        keeps = self.journal.lasting and not self.journal.each_update
        welcome = Reply(Registered(session, codec, interval, self._lease, delta, keeps))
        if self.journal.lasting and processes != self.noted.get(name):  # on the disk first: no older one must come back
            self.noting.send(self._note, name, welcome, future)
        else:
            answer(future, welcome)

    def interval(self, population: int) -> float:
        """Return how many seconds apart beats should be: as configured, and further apart when there are very many clients."""
        return max(self._interval, min(population / _BEATS_AT_ONCE, self._lease / 3))

    def _note(self, name: str, welcome: Reply, future: Future[Reply]) -> None:
        with self._turn() as coordinator:
            processes = coordinator.roster.processes(name)  # of now: what is noted later is never older
        try:
            if processes != self.noted.get(name):
                self.journal.join(name, processes)
        except FedcoreError as error:
            return fail(future, error)
        self.noted[name] = processes
        return answer(future, welcome)

    def _delta_for(self, message: Register) -> str:
        if self.delta is None or not set(self.delta.name.split("+")) <= set(message.accepts):
            return ""
        return self.delta.name

    def _negotiate(self, request: Request, message: Register) -> tuple[Codec | None, Codec | None]:
        if request.peer.by_reference:
            return None, None
        up = accepted_codec(message.codec or self._codec.name, self._accepts)
        if missing := set(self._codec.name.split("+")) - set(message.accepts):
            raise CodecRefused(
                f"the server sends {self._codec.name!r}, but client {message.client_id[:64]!r} accepts no "
                f"{', '.join(sorted(missing))}; give the client accept_codecs=[{self._codec.name!r}]"
            )
        return self._codec, up
