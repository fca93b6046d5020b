"""The server: a hub, a strategy, and the thread that directs the run.

The director waits for the machine to need something and hands it to the mathematics lane, which opens a round, and concludes
the one that closed. It does no work itself, so that deadlines are kept however long the arithmetic takes.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from secrets import token_hex
from types import TracebackType
from typing import Self

from fedcore import events as ev
from fedcore.clock import Clock
from fedcore.codec import Codec
from fedcore.config import ServerConfig
from fedcore.coordinator import Coordinator
from fedcore.errors import AggregationError, ConfigError, NonFinite, RunFailed, SchemaMismatch
from fedcore.evaluation import Evaluations
from fedcore.events import Event, Observer
from fedcore.history import History
from fedcore.hub import Hub
from fedcore.messages import Kind, ServerStatus
from fedcore.parameters import Parameters, Spec, digest
from fedcore.phase import Phase
from fedcore.registry import check_accepts, default_accepts
from fedcore.registry import codec as find_codec
from fedcore.registry import transport as find_transport
from fedcore.strategy import Strategy, aggregator_of, mean_metrics
from fedcore.tasks import Work
from fedcore.transport import Listener, Transport

log = logging.getLogger(__name__)

_EVALUATIONS_BEHIND = 2  # models that may wait for their evaluation before the next round is held back


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
        clock: the time.

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
        clock: Clock | None = None,
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
            machine, strategy, self.config, codec=own, clock=self._clock, observe=self._observe, conclude=self._look,
            accepts=default_accepts(own) if named is None else check_accepts(named, own),
        )  # fmt: skip
        self._evaluations = Evaluations(strategy, self._clock, self.config.evaluate_timeout or 600.0, self._evaluated)
        self._listener: Listener | None = None
        self._director = threading.Thread(target=self._direct, name="fedcore-director", daemon=True)
        self._done = threading.Event()
        self._spec: Spec | None = None
        self._parameters: Parameters | None = None
        self._extents: dict[str, float] = {}

    # --- what users call ---

    def start(self) -> Self:
        """Listen, and begin as soon as clients are there. Returns the server itself.

        Raises:
            AddressError: the address is malformed, taken, or not safe to serve on.
            FedcoreError: the strategy's initial parameters cannot travel.
        """
        try:
            initial = self.strategy.initialize_parameters()
            if initial is not None:
                spec = Spec.of(initial)
                self._adopt(spec.copy(initial, self.hub.landings.lend), spec)
            self._listener = self._transport.listen(self._wanted_address, self.hub.handle)
        except BaseException:
            self.stop()
            raise
        machine = self.hub.coordinator
        log.info("run %s: listening at %s", machine.run_id, self.address)
        self.hub.record(
            ev.RunStarted(
                at=self._clock.now(), run_id=machine.run_id, address=self.address, num_rounds=self.config.num_rounds
            )
        )
        self._director.start()
        return self

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
        if self._parameters is None or self._spec is None:
            return None
        return self._spec.copy(self._parameters)

    def wait(self, timeout: float | None = None) -> tuple[History, Parameters]:
        """Wait for the end of the run and return ``(history, final_parameters)``.

        Raises:
            TimeoutError: the run goes on.
            RunFailed: it ended early; :attr:`history` says how far it came.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the run is not over after {timeout} s")
        if failed := self.hub.coordinator.failed:
            raise RunFailed(f"the run ended after {self.hub.coordinator.committed} committed rounds: {failed}")
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
        self.hub.stop("the server was stopped")
        if self._director.ident is not None:
            self._done.wait()
        if self._listener is not None:
            self._listener.stop(grace=1.0)
        self.hub.close()
        self._evaluations.close()

    def status(self) -> ServerStatus:
        """Describe how the run stands."""
        return self.hub.status()

    def __enter__(self) -> Self:
        return self if self._director.ident is not None else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- the director ---

    def _direct(self) -> None:
        try:
            while not self.hub.finished:
                self._step()
            self._say_goodbye()
        except Exception:
            log.exception("the director failed; the run is over")
            self.hub.stop("of an internal error; see the server's log")
        finally:
            self._done.set()

    def _step(self) -> None:
        """Hand on what the machine needs now, or wait until something happens or is due."""
        with self.hub.condition:
            with self.hub.turn() as machine:
                now = self._clock.now()
                machine.tick(now)
                self._evaluations.overdue(now)
                needed = not self.hub.busy and self._next_job(machine, now) is not None
            if not needed:
                if not self.hub.finished:
                    self._wait()
                return
            self.hub.busy = True
        self.hub.math.send(self._look)

    def _next_job(self, machine: Coordinator, now: float) -> Callable[[], None] | None:
        if machine.phase is Phase.AGGREGATING:
            return self._conclude
        if not machine.digest and machine.first_model is None:
            nothing = digest({}, Spec(()))
            self.hub.tasks.works[Kind.INITIALIZE, 0] = Work(Kind.INITIALIZE, 0, {}, Spec(()), nothing, None)
            machine.ask_for_model(now, nothing)
        elif not machine.digest and machine.first_model and not machine.first_model.open:
            return self._take_first_model
        elif machine.candidates(now) is not None and len(self._evaluations.pending) < _EVALUATIONS_BEHIND:
            return self._open
        return None

    def _wait(self, until: float | None = None) -> None:
        self.hub.sleep(until, self._evaluations.next_deadline())

    def _look(self) -> None:
        """Do what the machine needs now, and what that makes due; on the mathematics lane."""
        try:
            while (job := self._due()) is not None:
                self.hub.busy = True
                job()
        except Exception as error:
            log.exception("the strategy failed; the run is over")
            self.hub.stop(f"the strategy failed: {type(error).__name__}: {error}")
        finally:
            if self.hub.busy:
                self.hub.busy = False
                self.hub.wake()

    def _due(self) -> Callable[[], None] | None:
        with self.hub.turn() as machine:
            return None if self.hub.finished else self._next_job(machine, self._clock.now())

    def _say_goodbye(self) -> None:
        """Wait for evaluations, then for the clients to hear that the run is over."""
        self.hub.flush_events()
        with self.hub.condition:
            while self._evaluations.pending:
                self._wait()
                self._evaluations.overdue(self._clock.now())
            until = self._clock.now() + self.config.stop_grace
            while self.hub.coordinator.roster.untold and self._clock.now() < until:
                self._wait(until)
        self.hub.flush_events()

    # --- steps of a round, on the mathematics lane ---

    def _open(self) -> None:
        with self.hub.turn() as machine:
            number, available = machine.round, machine.candidates(self._clock.now())
        if available is None:
            return
        rng = random.Random(f"{self.config.seed}/select/{number}")  # noqa: S311 - a seeded choice, no secret
        chosen = list(self.strategy.select(number, available, rng))
        spec, parameters = self._model()
        aggregator = aggregator_of(self.strategy, number, parameters)
        aggregator.each, aggregator.lend = self.hub.cores.each, self.hub.landings.lend
        aggregator.prepare(spec, self._extents)
        upload = self.strategy.upload_spec(Kind.FIT, spec)
        work = Work(Kind.FIT, number, parameters, spec, machine.digest, upload, aggregator)
        self.hub.tasks.works[Kind.FIT, number] = work
        with self.hub.turn() as machine:
            if machine.candidates(self._clock.now()) is not None:
                machine.open_round(chosen[: machine.policy.invitations], self._clock.now())

    def _conclude(self) -> None:
        """Make the next model of the closed round. Runs behind the last sum of the round."""
        number = self.hub.coordinator.round
        work = self.hub.tasks.works[Kind.FIT, number]
        try:
            parameters, model_digest, found = self._next_model(work)
        except Exception as error:
            log.exception("round %d made no model", number)
            with self.hub.turn() as machine:
                machine.fail(f"the aggregation failed: {error}", self._clock.now())
        else:
            self._extents = found
            self._publish(work, parameters, model_digest)
        self.hub.tasks.works.pop((Kind.FIT, number), None)

    def _next_model(self, work: Work) -> tuple[Parameters, str, dict[str, float]]:
        if work.aggregator is None:
            raise AssertionError("a training round has an aggregator")
        self.hub.uploads.sum_up(work)
        if work.failure is not None:
            raise work.failure
        aggregate = work.aggregator.result()
        proposed = self.strategy.step(work.number, work.parameters, aggregate)
        try:
            work.spec.check(proposed)
            # a strategy that gathers is user code, which may keep what it returned
            kept = work.aggregator.retains
            parameters = work.spec.copy(proposed, self.hub.landings.lend) if kept else work.spec.tie(dict(proposed))
            return parameters, *self.hub.cores.measured(parameters, work.spec)
        except (SchemaMismatch, NonFinite) as error:
            raise AggregationError(f"the strategy's result is no model: {error}") from error

    def _publish(self, work: Work, parameters: Parameters, model_digest: str) -> None:
        number, spec = work.number, work.spec
        self._parameters = parameters
        upload = self.strategy.upload_spec(Kind.EVALUATE, spec)
        self.hub.tasks.works[Kind.EVALUATE, number] = Work(Kind.EVALUATE, number, parameters, spec, model_digest, upload)
        self.hub.tasks.broadcast.keep([model_digest])
        metrics = {f"fit/{name}": value for name, value in mean_metrics(work.updates).items()}
        if self.strategy.evaluates:
            self._evaluations.server_side(number, spec.copy(parameters))
        with self.hub.turn() as machine:
            machine.publish(model_digest, self._clock.now(), metrics=metrics, traffic=work.traffic)
            if machine.evaluation is None:  # nobody offered, and nobody will hand anything in
                del self.hub.tasks.works[Kind.EVALUATE, number]

    def _take_first_model(self) -> None:
        """Adopt the parameters that a client handed in."""
        (update,) = self.hub.tasks.works.pop((Kind.INITIALIZE, 0)).updates
        log.info("the first model comes from client %s", update.client_id)
        self._adopt(update.parameters, Spec.of(update.parameters))

    def _adopt(self, parameters: Parameters, spec: Spec) -> None:
        name, self._extents = self.hub.cores.measured(parameters, spec)
        self._spec, self._parameters = spec, parameters
        with self.hub.turn() as machine:
            machine.adopt(name)

    def _model(self) -> tuple[Spec, Parameters]:
        if self._spec is None or self._parameters is None:
            raise AssertionError("no round opens before there is a model")
        return self._spec, self._parameters

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
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("observer %r failed on %s", observer, type(event).__name__)

    def _evaluated(self, event: Event) -> None:
        if isinstance(event, ev.Evaluated):
            self.hub.metrics.update(event.metrics)
        self.hub.record(event)
        self.hub.wake()


def start_server(
    server_address: str,
    config: ServerConfig | None = None,
    strategy: Strategy | None = None,
    *,
    transport: str | Transport = "grpc",
    codec: str | Codec = "safetensors",
    observers: Sequence[Observer] = (),
) -> tuple[History, Parameters]:
    """Run a federation: listen, train for ``config.num_rounds`` rounds, and return ``(history, final_parameters)``.

    Args:
        server_address: where to listen, such as ``"127.0.0.1:50051"``.
        config: how the run goes.
        strategy: what it computes, such as ``FedAvg(...)``.
        transport: a name, or a transport.
        codec: what models are sent with: a name, or a codec.
        observers: callables that receive every event.

    Raises:
        ConfigError: an argument cannot work.
        RunFailed: the run ended early.
    """
    if strategy is None:
        raise ConfigError("start_server needs a strategy, such as FedAvg(initial_parameters=model.state_dict())")
    server = Server(
        server_address, config=config, strategy=strategy, transport=transport, codec=codec, observers=observers
    )
    return server.run()
