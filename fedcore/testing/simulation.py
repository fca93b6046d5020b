"""A whole federation whose every step, fault and moment a seed decides.

The server is the real one, with its coordinator, its director and its uploads, and so are the clients' links and workers. The
threads, the time, the network and the disk are the simulation's. Hours of a federation pass in a second, and whatever goes
wrong goes wrong again with the same seed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

from fedcore.client import Client, offers_evaluation
from fedcore.config import ServerConfig
from fedcore.errors import FedcoreError
from fedcore.events import Event
from fedcore.history import History
from fedcore.journal import Journal
from fedcore.link import Link
from fedcore.messages import Message, Submit, Submitted
from fedcore.parameters import Parameters
from fedcore.server import Server
from fedcore.strategy import Strategy
from fedcore.testing.fibers import FiberClock, FiberCondition, FiberLanes, FiberLock
from fedcore.testing.journal import Disk, MemoryJournal
from fedcore.testing.network import Network
from fedcore.testing.records import Findings, Told, check_rows
from fedcore.testing.scheduler import Scheduler
from fedcore.transport import Body, Connection, Reply
from fedcore.worker import Worker

log = logging.getLogger(__name__)

_UNSAID = {"at", "run_id", "address", "past", "metrics", "traffic", "seconds"}  # of an event, in the log
_SLOW_DISK = 0.05  # of how many steps of the journal take long
_LAST = 30  # things that happened, below an error


class Happened(NamedTuple):
    """Something that happened in a simulation: when, to whom, and what; the server's events are there themselves, too."""

    at: float
    who: str
    what: str
    event: Event | None = None

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.who}: {self.what}"


@dataclass
class Simulation:
    """What a simulation came to.

    Attributes:
        history: the server's.
        parameters: the last model, or None if there is none.
        failed: why the run ended early, or "".
        log: what happened, in order; the same again with the same seed.
        told: the answers that clients got to their updates.
        disk: what the server noted.
        errors: what clients failed with, by client id; the last error of each.
        seconds: how long it took on its own clock.
        durable: whether each update was noted before it was acknowledged; if not, :attr:`told` proves nothing.
    """

    history: History
    parameters: Parameters | None
    failed: str
    log: list[Happened]
    told: list[Told]
    disk: Disk
    errors: dict[str, Exception] = field(default_factory=dict)
    seconds: float = 0.0
    durable: bool = True

    def check(self, *, quorum: int = 1, most: int | None = None, late: int = 0) -> Findings:
        """Judge what the server noted by what clients were told; see :func:`~fedcore.testing.check_state`.

        Args:
            quorum: the fewest updates of a round.
            most: the most.
            late: how many rounds after its own an update may count in.
        """
        rounds = [(page.number, page.state, page.base, page.model or None) for _, page in sorted(self.disk.pages.items())]
        updates = [
            (each.task_id, each.round, each.client_id, each.digest, each.num_examples, each.counted)
            for each in self.disk.entries.values()
        ]
        told = self.told if self.durable else ()
        return check_rows(rounds, updates, told, quorum=quorum, most=most, late=late)


def simulate(
    clients: Mapping[str, Callable[[], Client]],
    *,
    strategy: Callable[[], Strategy],
    config: ServerConfig | None = None,
    seed: int = 0,
    loss: float = 0.0,
    duplicate: float = 0.0,
    delay: float = 0.05,
    disk_delay: float = 0.01,
    crash_server: float = 0.0,
    crash_client: float = 0.0,
    restart: float = 5.0,
    patience: float = 600.0,
    limit: float = 1e6,
) -> Simulation:
    """Run a federation from its beginning to its end, and through whatever a seed has happen to it.

    >>> found = simulate({"a": MyClient, "b": MyClient}, strategy=lambda: FedAvg(model), seed=7, loss=0.1, crash_server=0.02)
    >>> assert not found.check().faults

    Args:
        clients: by client id, what makes the training code of a client, each time that its process starts.
        strategy: makes the strategy, each time that the server starts.
        config: how the run goes. What is noted is kept in memory; ``state_dir`` is not used.
        seed: of everything that is left to chance.
        loss: probability that a message is lost.
        duplicate: probability that a request arrives twice, the second time much later.
        delay: seconds that a message takes on average.
        disk_delay: seconds that the server's disk takes on average for what is noted.
        crash_server: probability that the server dies: before and behind each step of its journal, and at each request.
        crash_client: probability that a client dies: before and behind each request, and at its reply.
        restart: seconds until what died is started again, on average.
        patience: seconds that clients go on trying while the server cannot be reached.
        limit: seconds on the simulation's clock.

    Raises:
        TimeoutError: the run is not over then; what happened last stands below the error.
        Exception: what a server could not start for, or a client failed with, if the run did not get over without it.
    """
    scheduler = Scheduler(seed)
    network = Network(scheduler, loss=loss, duplicate=duplicate, delay=delay)
    faults = _Faults(disk_delay, crash_server, crash_client, restart, patience)
    try:
        return _Stage(clients, strategy, config or ServerConfig(), network, faults).run(limit)
    finally:
        scheduler.close()


@dataclass(frozen=True)
class _Faults:
    disk_delay: float = 0.0
    crash_server: float = 0.0
    crash_client: float = 0.0
    restart: float = 1.0
    patience: float = 0.0


class Process(Server):
    """A server whose threads are fibers of a group, and which notes its run in a journal that is handed in.

    Args:
        group: what crashes with it.
        network: where it listens.
        journal: where it notes the run.
        settings: as for :class:`~fedcore.server.Server`.
    """

    def __init__(self, group: str, network: Network, journal: Journal, **settings: Any):
        clock, lanes = FiberClock(network.scheduler), FiberLanes(network.scheduler, group)
        super().__init__(network.anywhere, transport=network, clock=clock, lanes=lanes, **settings)
        self.group, self._notes = group, journal
        machine = self.hub.coordinator
        machine.run_id = machine.roster.run_id = f"run-of-{group}"

    @property
    def over(self) -> bool:
        """Whether the run is over for this server."""
        return self._director.done.is_set()

    def _journal(self) -> Journal:
        return self._notes


class _Link(Link):
    """A link whose threads are fibers."""

    def __init__(self, scheduler: Scheduler, connection: Connection, client_id: str, **settings: Any):
        super().__init__(connection, client_id, clock=FiberClock(scheduler), **settings)
        self._scheduler = scheduler
        self._condition = FiberCondition(scheduler)
        self._registering = FiberLock(scheduler)  # type: ignore[assignment]

    def start_heartbeat(self) -> None:
        self._scheduler.spawn(f"heart of {self.client_id}", self._beat, self.client_id)


class _Recorded(Connection):
    """A client's connection; what it hears is written down."""

    def __init__(self, stage: _Stage, name: str, inner: Connection):
        self._stage, self._name, self._inner = stage, name, inner

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        what = " ".join(filter(None, (type(message).__name__.lower(), getattr(message, "task_id", ""))))
        try:
            reply = self._inner.request(message, body, timeout)
        except FedcoreError as error:
            self._stage.note(self._name, f"{what}: {type(error).__name__}")
            raise
        answer = reply.message
        if isinstance(message, Submit) and isinstance(answer, Submitted):
            self._stage.told.append(Told.of(message, answer))
        outcome = answer.outcome.value if isinstance(answer, Submitted) else type(answer).__name__.lower()
        self._stage.note(self._name, f"{what}: {outcome}")
        return reply

    def close(self) -> None:
        self._inner.close()


class _Stage:
    """A simulation under way."""

    def __init__(
        self,
        clients: Mapping[str, Callable[[], Client]],
        strategy: Callable[[], Strategy],
        config: ServerConfig,
        network: Network,
        faults: _Faults,
    ):
        self.scheduler, self.network, self.told, self.log = network.scheduler, network, list[Told](), list[Happened]()
        self._clients, self._strategy, self._config, self._faults = clients, strategy, config, faults
        self._disk, self._lives = Disk(), 0
        self._server: Process | None = None
        self._errors: dict[str, Exception] = {}
        self._broken: Exception | None = None  # what a server did not start for
        self.scheduler.crashed, network.passing, network.arriving = self._crashed, self._passing, self._arriving

    def run(self, limit: float) -> Simulation:
        """Go on until the run is over."""
        self._serve()
        for name in self._clients:
            self._join(name)
        while self._server is None or not self._server.over:
            if self._broken or not self.scheduler.step() or self.scheduler.now > limit:
                raise self._stuck()
        server, self._faults = self._server, _Faults()
        ending = self.scheduler.spawn("the end", server.stop, server.group)
        while ending in self.scheduler.fibers(server.group):
            self.scheduler.step()
        return Simulation(
            server.history, server.parameters, server.hub.coordinator.failed, self.log, self.told, self._disk, self._errors,
            self.scheduler.now, self._config.durability == "update",
        )  # fmt: skip

    def note(self, who: str, what: str, event: Event | None = None) -> None:
        """Write down that something happened."""
        self.log.append(Happened(self.scheduler.now, who, what, event))

    def _stuck(self) -> Exception:
        """Return why the run does not get over."""
        late = TimeoutError(f"the run is not over after {self.scheduler.now:.0f} simulated seconds")
        error = self._broken or next(iter(self._errors.values()), late)
        error.add_note("\n".join(["what happened last:", *map(str, self.log[-_LAST:])]))
        return error

    # --- processes ---

    def _serve(self) -> None:
        self._lives += 1
        group = f"server-{self._lives}"
        self.scheduler.spawn(group, partial(self._be_server, group), group)

    def _be_server(self, group: str) -> None:
        self.note(group, "starts")
        journal = MemoryJournal(
            self._disk, each_update=self._config.durability == "update", keep_updates=self._config.keep_updates,
            passed=partial(self._pass, group),
        )  # fmt: skip
        try:
            server = Process(
                group, self.network, journal, config=self._config, strategy=self._strategy(),
                observers=[lambda event: self.note(group, _said(event), event)],
            )  # fmt: skip
            server.start()
        except Exception as error:
            log.debug("%s does not start", group, exc_info=error)
            self._broken = error
            self.note(group, f"does not start: {type(error).__name__}: {error}")
        else:
            self._server = server

    def _join(self, name: str) -> None:
        self.scheduler.spawn(name, partial(self._be_client, name), name)

    def _be_client(self, name: str) -> None:
        self.note(name, "starts")
        connection = _Recorded(self, name, self.network.connect(self.network.anywhere))
        try:
            client = self._clients[name]()
            evaluates = offers_evaluation(client)
            link = _Link(self.scheduler, connection, name, evaluates=evaluates, patience=self._faults.patience)
            said = Worker(link, client).run()
        except Exception as error:
            log.debug("client %s ended with an error", name, exc_info=error)
            self._errors[name] = error
            said = f"{type(error).__name__}: {error}"
        self.note(name, f"ends: {said}")

    # --- faults ---

    def _pass(self, group: str, point: str) -> None:
        """Come to a point of the journal."""
        if self._happens(self._faults.crash_server):
            self.note(group, f"crashes at {point}")
            self.scheduler.crash(group)
        if self._faults.disk_delay and point.endswith("before"):
            slow = 100.0 if self._happens(_SLOW_DISK) else 1.0
            self.scheduler.wait(slow * self.scheduler.random.expovariate(1 / self._faults.disk_delay))

    def _arriving(self, message: Message) -> None:
        if self._server is not None and self._happens(self._faults.crash_server):
            self.note(self._server.group, f"crashes at a {type(message).__name__.lower()}")
            self.scheduler.crash(self._server.group)

    def _passing(self, message: Message) -> None:
        fiber = self.scheduler.current
        if fiber is not None and self._happens(self._faults.crash_client):
            self.note(fiber.group, f"crashes at a {type(message).__name__.lower()}")
            self.scheduler.crash(fiber.group)

    def _crashed(self, group: str) -> None:
        again: Callable[[], None] = partial(self._join, group)
        if group not in self._clients:
            self._server, again = None, self._serve
            self.network.cut(group)
        wait = self.scheduler.random.expovariate(1 / self._faults.restart)
        self.scheduler.at(self.scheduler.now + wait, again)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.scheduler.random.random() < probability


def _said(event: Event) -> str:
    shown = (getattr(event, each.name) for each in fields(event) if each.name not in _UNSAID)
    return f"{type(event).__name__}: {', '.join(map(str, shown))}"
