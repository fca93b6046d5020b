"""Who is registered: sessions, leases, and since when there are enough clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from fedcore.errors import Fenced, NotRegistered, PermissionDenied, RunChanged
from fedcore.messages import Beat, ClientStatus, Session, Status, Traffic
from fedcore.values import check_client_id

_REMEMBERED = 8  # processes of a client that were superseded


@dataclass
class Member:
    """A client. ``told`` means it has heard that the run is over; without a token it is expected, but not registered yet."""

    client_id: str
    token: str = field(repr=False)
    evaluates: bool
    last_seen: float
    instance: str = ""
    status: Status = Status.IDLE
    round: int = 0
    step: int = 0
    total: int = 0
    told: bool = False

    @property
    def available(self) -> bool:
        """Whether it can be given work: a client that reported an error has most likely ended."""
        return self.token != "" and self.status is not Status.ERROR

    def note(self, beat: Beat) -> bool:
        """Take over what a beat says; returns whether anything is new."""
        before = (self.status, self.round, self.step, self.total)
        self.status, self.round, self.step, self.total = beat.status, beat.round, beat.step, beat.total
        return before != (self.status, self.round, self.step, self.total)


@dataclass
class Roster:
    """The clients of one run. A client is alive while it was heard within its lease of ``lease`` seconds.

    Attributes:
        members: the clients by id, those that were heard longest ago first.
        quorum_since: since when at least ``quorum`` clients are available, or None.
        stirs: counts what may change who is available.
        superseded: by client, the last processes that a newer one took the place of.
        evicted: by client, why it was sent away.
    """

    run_id: str
    quorum: int
    lease: float
    members: OrderedDict[str, Member] = field(default_factory=OrderedDict)
    quorum_since: float | None = None
    stirs: int = 0
    instances: dict[str, str] = field(default_factory=dict)
    superseded: dict[str, list[str]] = field(default_factory=dict)
    evicted: dict[str, str] = field(default_factory=dict)
    _available: set[str] = field(default_factory=set)

    @property
    def available(self) -> list[str]:
        """The clients that can be given work, sorted."""
        return sorted(self._available)

    @property
    def ready(self) -> int:
        """How many these are."""
        return len(self._available)

    def register(
        self, client_id: str, token: str, *, evaluates: bool, now: float, instance: str = ""
    ) -> tuple[Member, bool]:
        """Take a client in under a new session, which fences that of an older process; returns it, and whether it was there.

        The same process gets its session again, so that nothing changes when its request comes twice.

        Args:
            client_id: who.
            token: of the new session.
            evaluates: whether it offers to.
            now: the time.
            instance: names the process; "" is always a new one.

        Raises:
            ConfigError: ``client_id`` is not one.
            Fenced: a newer process of this client is known.
            PermissionDenied: it was sent away.
        """
        self._check_welcome(check_client_id(client_id))
        before = self.members.get(client_id)
        again = before is not None and before.token != ""
        if instance in self.superseded.get(client_id, ()):
            raise Fenced(f"a newer process registered as {client_id!r}; this one must end")
        if before and again and instance and before.instance == instance:
            before.evaluates = evaluates
            self._heard(before, now)
            return before, True
        self.know(client_id, instance)
        member = self.members[client_id] = Member(client_id, token, evaluates, now, instance)
        self._heard(member, now)
        self.watch(client_id, now)
        return member, again

    def processes(self, client_id: str) -> list[str]:
        """Return the last processes of a client, the newest last."""
        newest = self.instances.get(client_id, "")
        return [*self.superseded.get(client_id, ()), *([newest] if newest else [])]

    def remember(self, processes: Mapping[str, Sequence[str]]) -> None:
        """Take back what :meth:`processes` returned of each client before a restart."""
        self.superseded = {name: list(each[:-1]) for name, each in processes.items()}
        self.instances = {name: each[-1] for name, each in processes.items() if each}

    def know(self, client_id: str, instance: str) -> None:
        """Note which process speaks for a client now; one that did before will be fenced."""
        before = self.instances.get(client_id, "")
        if before and before != instance:
            older = self.superseded.setdefault(client_id, [])
            older.append(before)
            del older[:-_REMEMBERED]
        self.instances[client_id] = instance

    def expect(self, client_id: str, now: float) -> None:
        """Count a client as alive for one lease, so that it can register again."""
        self.members.setdefault(client_id, Member(client_id, "", False, now))

    def member(self, session: Session, now: float) -> Member:
        """Return the client that speaks under ``session``, and note that it lives.

        Raises:
            RunChanged: the session is of another run.
            NotRegistered: the client never registered, or its lease ran out.
            Fenced: a newer process registered under the same id.
            PermissionDenied: the client was sent away.
        """
        if session.run_id != self.run_id:
            raise RunChanged(f"this server runs {self.run_id}, not {session.run_id[:40]!r}: register again")
        self._check_welcome(session.client_id)
        member = self.members.get(session.client_id)
        if member is None or not member.token:
            raise NotRegistered(f"client {session.client_id[:64]!r} is not registered (any more): register again")
        if member.token != session.token:
            raise Fenced(f"a newer process registered as {session.client_id!r}; this one must end")
        self._heard(member, now)
        return member

    def _heard(self, member: Member, now: float) -> None:
        member.last_seen = now
        self.members.move_to_end(member.client_id)

    def evict(self, client_id: str, reason: str, now: float) -> None:
        """Strike a client off, and if there is a reason for that, let it in no more."""
        self.members.pop(client_id, None)
        if reason:
            self.evicted[client_id] = reason
        self.watch(client_id, now)

    def _check_welcome(self, client_id: str) -> None:
        if client_id in self.evicted:
            raise PermissionDenied(f"{client_id!r} was sent away: {self.evicted[client_id]}", reason="EVICTED")

    def check_current(self, client_id: str, token: str) -> None:
        """Check that no newer process of a client has registered since ``token`` was given out.

        Raises:
            Fenced: one has.
        """
        member = self.members.get(client_id)
        if token and member is not None and member.token not in ("", token):
            raise Fenced(f"a newer process registered as {client_id!r}; this one must end")

    def expire(self, now: float) -> list[Member]:
        """Strike off the clients whose lease ran out, and return them."""
        lost = list(takewhile(lambda member: now >= member.last_seen + self.lease, self.members.values()))
        for member in lost:
            del self.members[member.client_id]
            self.watch(member.client_id, now)
        return lost

    def next_expiry(self) -> float | None:
        """Return when the next lease runs out if nobody is heard of."""
        return next((member.last_seen + self.lease for member in self.members.values()), None)

    def evaluators(self) -> list[str]:
        """Return the clients that offered to evaluate, sorted."""
        return sorted(m.client_id for m in self.members.values() if m.evaluates and m.available)

    def describe(self, now: float, traffic: Mapping[str, Traffic]) -> tuple[ClientStatus, ...]:
        """Describe the clients, by id; ``traffic`` gives the bytes sent to each and received from it."""
        return tuple(
            ClientStatus(name, m.status, m.round, m.step, m.total, now - m.last_seen, traffic.get(name, Traffic()))
            for name, m in sorted(self.members.items())
            if m.token
        )

    @property
    def untold(self) -> int:
        """How many clients have not heard yet that the run is over; those that are expected included."""
        return sum(not m.told and (m.available or not m.token) for m in self.members.values())

    def watch(self, client_id: str, now: float) -> None:
        """Note whether a client can be given work, and since when enough can; called when it came, went, or changed."""
        self.stirs += 1
        member = self.members.get(client_id)
        if member is not None and member.available:
            self._available.add(client_id)
        else:
            self._available.discard(client_id)
        if self.ready < self.quorum:
            self.quorum_since = None
        elif self.quorum_since is None:
            self.quorum_since = now
