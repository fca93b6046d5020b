"""Who is registered: sessions, leases, and since when there are enough clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedcore.errors import Fenced, NotRegistered, RunChanged
from fedcore.messages import Beat, ClientStatus, Session, Status, Traffic, check_client_id


@dataclass
class Member:
    """A registered client. ``told`` means it has heard that the run is over."""

    client_id: str
    token: str
    evaluates: bool
    last_seen: float
    status: Status = Status.IDLE
    round: int = 0
    step: int = 0
    total: int = 0
    told: bool = False

    @property
    def available(self) -> bool:
        """Whether it can be given work: a client that reported an error has most likely ended."""
        return self.status is not Status.ERROR

    def note(self, beat: Beat) -> bool:
        """Take over what a beat says; returns whether anything is new."""
        before = (self.status, self.round, self.step, self.total)
        self.status, self.round, self.step, self.total = beat.status, beat.round, beat.step, beat.total
        return before != (self.status, self.round, self.step, self.total)


@dataclass
class Roster:
    """The clients of one run. A client is alive while it was heard within its lease of ``lease`` seconds.

    Attributes:
        quorum_since: since when at least ``quorum`` clients are available, or None.
        stirs: counts what may change who is available.
    """

    run_id: str
    quorum: int
    lease: float
    members: dict[str, Member] = field(default_factory=dict)
    quorum_since: float | None = None
    stirs: int = 0

    @property
    def available(self) -> list[str]:
        """The clients that can be given work, sorted."""
        return sorted(m.client_id for m in self.members.values() if m.available)

    def register(self, client_id: str, token: str, *, evaluates: bool, now: float) -> bool:
        """Take a client in under a new session, which fences an older one; returns whether there was one.

        Raises:
            ConfigError: ``client_id`` is not one.
        """
        again = check_client_id(client_id) in self.members
        self.members[client_id] = Member(client_id, token, evaluates, now)
        self.watch(now)
        return again

    def member(self, session: Session, now: float) -> Member:
        """Return the client that speaks under ``session``, and note that it lives.

        Raises:
            RunChanged: the session is of another run.
            NotRegistered: the client never registered, or its lease ran out.
            Fenced: a newer process registered under the same id.
        """
        if session.run_id != self.run_id:
            raise RunChanged(f"this server runs {self.run_id}, not {session.run_id[:40]!r}: register again")
        member = self.members.get(session.client_id)
        if member is None:
            raise NotRegistered(f"client {session.client_id[:64]!r} is not registered (any more): register again")
        if member.token != session.token:
            raise Fenced(f"a newer process registered as {session.client_id!r}; this one must end")
        member.last_seen = now
        return member

    def expire(self, now: float) -> list[Member]:
        """Strike off the clients whose lease ran out, and return them."""
        lost = [m for m in self.members.values() if now >= m.last_seen + self.lease]
        for member in lost:
            del self.members[member.client_id]
        if lost:
            self.watch(now)
        return lost

    def next_expiry(self) -> float | None:
        """Return when the next lease runs out if nobody is heard of."""
        return min((m.last_seen + self.lease for m in self.members.values()), default=None)

    def evaluators(self) -> list[str]:
        """Return the clients that offered to evaluate, sorted."""
        return sorted(m.client_id for m in self.members.values() if m.evaluates and m.available)

    def describe(self, now: float, traffic: Mapping[str, Traffic]) -> tuple[ClientStatus, ...]:
        """Describe the clients, by id; ``traffic`` gives the bytes sent to each and received from it."""
        return tuple(
            ClientStatus(name, m.status, m.round, m.step, m.total, now - m.last_seen, traffic.get(name, Traffic()))
            for name, m in sorted(self.members.items())
        )

    @property
    def untold(self) -> int:
        """How many clients have not heard yet that the run is over."""
        return sum(not member.told and member.available for member in self.members.values())

    def watch(self, now: float) -> None:
        """Note since when there are enough clients; called when one came, went, or changed."""
        self.stirs += 1
        if len(self.available) < self.quorum:
            self.quorum_since = None
        elif self.quorum_since is None:
            self.quorum_since = now
