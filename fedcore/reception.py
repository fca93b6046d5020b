"""Takes clients in: agrees with each on how models travel, gives it a session, and has noted which process it is.

A client may register a few times in a row, as one does that is restarted, and then at a steady rate. One that comes more often
is refused until later, and it keeps no place from others meanwhile: it has one again when it comes for work.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from secrets import token_hex

from fedcore.clock import Clock
from fedcore.codec import REFERENCE, Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.errors import CodecRefused, FedcoreError, ProtocolError, TooOften
from fedcore.journal import Journal
from fedcore.lane import THREADS, Lanes
from fedcore.messages import PROTOCOL_VERSION, Register, Registered, Status
from fedcore.pace import Pace
from fedcore.registry import accepted_codec, delta_codec
from fedcore.tasks import Route, answer, fail
from fedcore.transport import Reply, Request
from fedcore.values import check_client_id

_RETURNS = 60.0  # clients a second that are to come back after an interruption
_BEATS_AT_ONCE = 250.0  # beats a second that the server asks for at most, however many clients there are

_LONGEST_INSTANCE = 64

_IN_A_ROW = 10  # registrations of a client that are not looked at for how often they come
_STRANGERS_IN_A_ROW = 10_000  # of names that were never heard of: whole crowds come at once
_STRANGERS_RATE = 100  # as many times as often as a single client may they register, together
_GONE = 64  # clients that are no more there may be in the table of routes


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
        rate = config.limits.registrations_per_minute / 60
        self._pace, self._strangers = Pace(rate, _IN_A_ROW), Pace(_STRANGERS_RATE * rate, _STRANGERS_IN_A_ROW)

    def register(self, request: Request, message: Register, future: Future[Reply]) -> None:
        """Take a client in.

        Raises:
            ProtocolError: it speaks another version of the protocol, or knows no codec that is spoken here.
            ConfigError: its name is none.
            TooOften: it registers too often.
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
            roster, name, now = coordinator.roster, check_client_id(message.client_id), self._clock.now()
            self._hold_back(coordinator, name, now)
            session = coordinator.register(
                name, token_hex(16), instance=message.instance, evaluates=message.evaluates, now=now
            )
            population, processes = len(roster.members), roster.processes(name)
            interval, spread = self.interval(population), self.spread(population)
            if len(self.routes) > len(roster.members) + _GONE:
                self.routes = {n: r for n, r in self.routes.items() if n in roster.members}
            traffic = self.routes.get(name, Route(None)).traffic
            self.routes[name] = Route(down, up, bool(delta), traffic=traffic)
        codec = up.name if up else REFERENCE
        keeps = self.journal.lasting and not self.journal.each_update
        welcome = Reply(Registered(session, codec, interval, self._lease, delta, keeps, spread))
        if self.journal.lasting and processes != self.noted.get(name):  # on the disk first: no older one must come back
            self.noting.send(self._note, name, welcome, future)
        else:
            answer(future, welcome)

    def interval(self, population: int) -> float:
        """Return how many seconds apart beats should be: as configured, and further apart when there are very many clients."""
        return max(self._interval, min(population / _BEATS_AT_ONCE, self._lease / 3))

    def spread(self, population: int) -> float:
        """Return over how many seconds the clients should spread their attempts to come back, should they lose the server."""
        return min(population / _RETURNS, self._lease / 3)

    def _hold_back(self, coordinator: Coordinator, name: str, now: float) -> None:
        """Refuse a client that registers too often; what it was asked to do, others may until it comes for work."""
        wait = self._pace.late(name, now)
        if not wait and name not in coordinator.roster.instances:
            wait = self._strangers.late("", now)
        if not wait:
            return
        member = coordinator.roster.members.get(name)
        if member and member.available:
            member.status = Status.ERROR
            coordinator.changes += coordinator.rounds.lose(name, "it registers too often")
            coordinator.roster.watch(name, now)
            coordinator.tick(now)
        raise TooOften(f"client {name!r} registers too often; it may again in {wait:.1f} s", retry_after=wait)

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
