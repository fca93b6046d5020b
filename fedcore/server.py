"""The server: a hub that speaks to clients, a director that runs the rounds, and what users and observers see of them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from fedcore import audit
from fedcore import events as ev
from fedcore.ambition import Best
from fedcore.audit import Audit
from fedcore.audit_pages import Pages
from fedcore.border import Border
from fedcore.clock import Clock
from fedcore.codec import Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.director import Director
from fedcore.errors import ConfigError, OutOfStorage, RunFailed, RunSuspended
from fedcore.evaluation import Evaluations
from fedcore.events import Event, Observer
from fedcore.filter import Filter
from fedcore.history import History
from fedcore.hub import Hub
from fedcore.journal import Diary, Journal
from fedcore.lane import THREADS, Lanes
from fedcore.messages import Kind, ServerStatus
from fedcore.parameters import Parameters
from fedcore.registry import check_accepts, default_accepts
from fedcore.registry import codec as find_codec
from fedcore.registry import transport as find_transport
from fedcore.strategy import Strategy
from fedcore.transport import Listener, Transport

log = logging.getLogger(__name__)


class Server:
    """Runs one federation.

    >>> with Server("127.0.0.1:0", config=ServerConfig(num_rounds=3), strategy=strategy) as server:
    ...     print(server.address)
    ...     history, parameters = server.wait()

    Args:
        address: where to listen; port 0 takes a free one.
        config: how the run goes.
        strategy: what it computes.
        transport: a name, or a transport.
        codec: what models are sent with: a name, or a codec.
        observers: callables that receive every :class:`~fedcore.events.Event`.
        filters: go over each aggregate before the strategy's step, the last one first; see :class:`~fedcore.Filter`.
        clock: the time.
        lanes: makes the threads.

    Raises:
        ConfigError: an argument cannot work.
    """

    def __init__(
        self,
        address: str,
        *,
        config: ServerConfig | None = None,
        strategy: Strategy,
        transport: str | Transport = "grpc",
        codec: str | Codec = "safetensors",
        observers: Sequence[Observer] = (),
        filters: Sequence[Filter] = (),
        clock: Clock | None = None,
        lanes: Lanes = THREADS,
    ):
        if not isinstance(strategy, Strategy):
            raise ConfigError(f"strategy must be a fedcore.Strategy, not {strategy!r}")
        self.config = config or ServerConfig()
        self.strategy = strategy
        self.history = History()
        self._wanted_address = address
        self._transport = find_transport(transport)
        self._observers = tuple(observers)
        self._clock = clock or Clock()
        own = find_codec(codec)
        named = self.config.accept_codecs
        policy = self.config.policy_for(strategy)
        machine = Coordinator(
            f"run-{token_hex(6)}", num_rounds=self.config.num_rounds, policy=policy,
            heartbeat_timeout=self.config.heartbeat_timeout, evaluate_timeout=self.config.evaluate_timeout,
        )  # fmt: skip
        self.hub = Hub(
            machine, strategy, self.config, codec=own, clock=self._clock, observe=self._observe,
            conclude=lambda: self._director.look(),
            accepts=default_accepts(own) if named is None else check_accepts(named, own), lanes=lanes,
        )  # fmt: skip
        self._evaluations = Evaluations(
            strategy, self._clock, self.config.evaluate_timeout or 600.0, self._evaluated, self.hub.wake, lanes
        )
        self._director = Director(self.hub, strategy, self.config, self._clock, self._evaluations)
        self._director.course.filters = tuple(filters)
        self._border = Border(
            self.hub, self._director.course.last, share_model=self.config.share_model, limits=self.config.limits
        )
        self._listener: Listener | None = None
        self._audit: Audit | None = None

    # --- what users call ---

    def start(self) -> Self:
        """Listen, and begin as soon as clients are there. Returns the server itself.

        Raises:
            AddressError: the address is malformed, taken, or not safe to serve on.
            StateError: the state directory is in use, damaged, or of another run.
            FedcoreError: the strategy's initial parameters cannot travel.
        """
        try:
            past = self._director.prepare(self._journal())
            self._audit = self._audited()
            self._border.pages = Pages(self._audit, self.hub.lanes) if self._audit else None
            for event in past.events if past else ():
                self.history.take(event)
            self._listener = self._transport.listen(self._wanted_address, self._border.handle, self.config.limits)
        except BaseException:
            self.stop()
            raise
        machine = self.hub.coordinator
        log.info("run %s: listening at %s", machine.run_id, self.address)
        self.hub.record(
            ev.RunStarted(
                at=self._clock.now(), run_id=machine.run_id, address=self.address, num_rounds=self.config.num_rounds,
                past=past.events if past else (), resumed=past is not None,
            )
        )  # fmt: skip
        self._director.begin()
        return self

    def _audited(self) -> Audit | None:
        config = self.config
        if config.audit_log is None and config.state_dir is None:
            return None
        return Audit(config.audit_log or Path(config.state_dir or "") / audit.NAME)

    def _journal(self) -> Journal:
        config = self.config
        if config.state_dir is None:
            return Journal()
        each_update = config.durability == "update"
        return Diary(config.state_dir, find_codec("safetensors"), each_update=each_update, keep_updates=config.keep_updates)

    @property
    def address(self) -> str:
        """Where clients connect.

        Raises:
            ConfigError: the server was not started.
        """
        if self._listener is None:
            raise ConfigError("the server has no address before start()")
        return self._listener.address

    @property
    def parameters(self) -> Parameters | None:
        """A copy of the current global model, or None if there is none yet."""
        parameters, spec = self._director.course.parameters, self._director.course.spec
        return None if parameters is None or spec is None else spec.copy(parameters)

    @property
    def best(self) -> Best | None:
        """The best model so far, by ``ServerConfig.goal``; None without a goal, or before anything was measured."""
        return self._director.ambition.best

    def wait(self, timeout: float | None = None) -> tuple[History, Parameters]:
        """Wait for the end of the run and return ``(history, final_parameters)``.

        Raises:
            TimeoutError: the run goes on.
            RunFailed: it ended early; :attr:`history` says how far it came.
            RunSuspended: this server left it to a later one.
        """
        if not self._director.done.wait(timeout):
            raise TimeoutError(f"the run is not over after {timeout} s")
        if self.hub.suspended:
            raise RunSuspended("the server left the run, which goes on when one starts with the same state directory")
        if failed := self.hub.coordinator.failed:
            raise RunFailed(f"the run ended after {self.hub.coordinator.progress.committed} committed rounds: {failed}")
        parameters = self.parameters
        if parameters is None:
            raise AssertionError("a finished run has a model")
        return self.history, parameters

    def run(self) -> tuple[History, Parameters]:
        """Start, wait for the end, and stop."""
        with self:
            return self.wait()

    def stop(self) -> None:
        """End the run if it goes on, tell the clients, and free everything. May be called twice."""
        if self.hub.suspended:
            return self._end(self.config.stop_grace)
        self.hub.stop("the server was stopped")
        return self._end(grace=1.0)

    def suspend(self) -> None:
        """Leave the run as it stands, for a later process with the same state directory; clients wait for that.

        Uploads in progress have ``stop_grace`` seconds to be taken in.

        Raises:
            ConfigError: there is no state directory, so that nothing would be left of the run.
        """
        if self.config.state_dir is None:
            raise ConfigError("a run without a state_dir cannot be suspended: ServerConfig(state_dir=...)")
        self.hub.suspend()
        self._end(self.config.stop_grace)

    def _end(self, grace: float) -> None:
        if self._director.started:
            self._director.done.wait()
        if self._listener is not None:
            self._listener.stop(grace)
        self.hub.close()
        self._evaluations.close()
        self._director.course.journal.end()
        if self._border.pages is not None:
            self._border.pages.close()
        if self._audit is not None:
            self._audit.close()

    def status(self) -> ServerStatus:
        """Describe how the run stands."""
        return self._border.status()

    def __enter__(self) -> Self:
        return self if self._director.started else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- what happened ---

    def _observe(self, event: Event) -> None:
        """Keep the history, then tell the observers; runs on the events lane."""
        self.history.take(event)
        if isinstance(event, ev.RoundFailed):
            self.hub.tasks.works.pop((Kind.FIT, event.round), None)
        elif isinstance(event, ev.EvaluationClosed):
            work = self.hub.tasks.works.pop((Kind.EVALUATE, event.round), None)
            if work and work.updates:
                self._evaluations.client_side(event.round, list(work.updates))
            else:
                self._director.evaluated(event.round, None, of_clients=True)
        first: tuple[Observer, ...] = (self._audit,) if self._audit else ()
        for observer in (*first, *self._observers):
            try:
                observer(event)
            except Exception:
                log.exception("observer %r failed on %s", observer, type(event).__name__)

    def _evaluated(self, event: Event) -> None:
        if isinstance(event, ev.Evaluated):
            self.hub.metrics.update(event.metrics)
            try:
                self._director.course.journal.measure(event.round, event.metrics)
            except OutOfStorage as error:  # the round stands, and its model can be evaluated again
                log.warning("the metrics of round %d are not noted: %s", event.round, error)
        self.hub.record(event)
        if isinstance(event, ev.Evaluated | ev.EvaluationFailed):
            found = event.metrics if isinstance(event, ev.Evaluated) else None
            self._director.evaluated(event.round, found, of_clients=event.of_clients)


def start_server(
    server_address: str,
    config: ServerConfig | None = None,
    strategy: Strategy | None = None,
    *,
    transport: str | Transport = "grpc",
    codec: str | Codec = "safetensors",
    observers: Sequence[Observer] = (),
    filters: Sequence[Filter] = (),
) -> tuple[History, Parameters]:
    """Run a federation: listen, train for ``config.num_rounds`` rounds, and return ``(history, final_parameters)``.

    Args:
        server_address: where to listen, such as ``"127.0.0.1:50051"``.
        config: how the run goes.
        strategy: what it computes, such as ``FedAvg(...)``.
        transport: a name, or a transport.
        codec: what models are sent with: a name, or a codec.
        observers: callables that receive every event.
        filters: go over each aggregate before the strategy's step, the last one first; see :class:`~fedcore.Filter`.

    The signal SIGTERM ends it in good order: with a state directory the server takes in what is on its way, leaves the run
    to the next server, and the process exits with status 0; without one the run ends, and the clients are told.

    Raises:
        ConfigError: an argument cannot work.
        StateError: the state directory is in use, damaged, or of another run.
        RunFailed: the run ended early.
        SystemExit: SIGTERM came, and the run can go on later.
    """
    if strategy is None:
        raise ConfigError("start_server needs a strategy, such as FedAvg(initial_parameters=model.state_dict())")
    server = Server(
        server_address, config=config, strategy=strategy, transport=transport, codec=codec, observers=observers,
        filters=filters,
    )
    with _heeding_sigterm(server):
        try:
            return server.run()
        except RunSuspended as error:
            log.info("%s", error)
            raise SystemExit(0) from None


@contextmanager
def _heeding_sigterm(server: Server) -> Iterator[None]:
    """Let SIGTERM end the server in good order; on other threads than the main one signals cannot be had."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    leaving: list[threading.Thread] = []

    def leave(*_: object) -> None:  # on a thread: this one may hold the very lock that is needed
        leaving.append(threading.Thread(target=_leave, args=(server,), name="fedcore-leaving", daemon=True))
        leaving[-1].start()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for thread in leaving:
            thread.join()


def _leave(server: Server) -> None:
    log.warning("SIGTERM: the server leaves")
    if server.config.state_dir is None:
        server.hub.stop("the server was told to end (SIGTERM)")
    else:
        server.hub.suspend()
