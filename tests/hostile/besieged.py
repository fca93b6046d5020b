"""A server, the standard fleet beside it, and what must hold of both whatever is sent by others."""

import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from model import CLIENTS, NBYTES, trained
from procs import MIB, Process

from fedcore import Client, Grpc
from fedcore.errors import ConnectionLost, FedcoreError
from fedcore.link import Link
from fedcore.messages import Beat
from fedcore.protos import fedcore_pb2 as pb
from fedcore.security import TLS
from fedcore.transport import Connection
from fedcore.transports.grpc import status
from fedcore.worker import Worker

HERE = Path(__file__).parent
STALL = 1.0  # seconds
SOON = 2.0  # seconds within which every answer comes; of a stream that stands still, the idle limit and one more
BUDGET = max(64 * MIB, 2 * NBYTES)
LEASE, LONGEST_LINE, SLOWEST_BEAT, PATIENCE = 5.0, 1024, 2.0, 30.0


class Gate:
    """Where the first client stands in each round, so that a round stays open for as long as it is held."""

    def __init__(self):
        self._news, self._holders, self._passed = threading.Condition(), 0, 0
        self.round, self.parameters, self.occupied = 0, {}, False

    @contextmanager
    def held(self):
        """Keep the next round open, or the one that is held already; gives its number."""
        if self._holders:
            yield self.round
            return
        with self._news:
            self._holders += 1
            there = self._news.wait_for(lambda: self.occupied and self.round > self._passed, PATIENCE)
            assert there, "the rounds stand still"
        try:
            yield self.round
        finally:
            with self._news:
                self._holders -= 1
                self._passed = self.round
                self._news.notify_all()

    def enter(self, number, parameters):
        with self._news:
            self.round, self.parameters = number, {name: tensor.clone() for name, tensor in parameters.items()}
            self.occupied = True
            self._news.notify_all()
            free = self._news.wait_for(lambda: not self._holders or number <= self._passed, PATIENCE)
            assert free, "the round was held for ever"
            self.occupied = False


class Honest(Client):
    def __init__(self, number, pace, gate=None):
        self.number, self.pace, self.gate, self.late = number, pace, gate, 0.0

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        if self.gate is not None:
            self.gate.enter(config["round"], parameters)
        else:
            began = time.monotonic()
            threading.Event().wait(self.pace)
            self.late = max(self.late, time.monotonic() - began - self.pace)
        return *trained(parameters, config["round"], self.number), {"loss": 0.5}


class Timed(Connection):
    """Notes how long heartbeats take."""

    def __init__(self, inner, beats):
        self.inner, self.beats = inner, beats

    def request(self, message, body=(), timeout=None):
        began = time.monotonic()
        reply = self.inner.request(message, body, timeout)
        if isinstance(message, Beat):
            self.beats.append(time.monotonic() - began)
        return reply

    def close(self):
        self.inner.close()


class Siege:
    """A server with its fleet, from the first round to the end of the ``with`` block.

    Args:
        folder: for its state, its log, and nothing else.
        pace: seconds that an honest client trains for.
        kits: folders with certificates by name, if there are any: of ``server``, of each honest client, and of ``watcher``, who
            is an operator.
        config: of the server.

    Attributes:
        gate: keeps rounds open.
        sessions: of the honest clients, by name: their links, which have a session.
    """

    def __init__(self, folder, *, pace=0.1, kits=None, num_rounds=100_000, durable=True, stop_grace=1.0, limits=None, **config):
        self.folder, self.pace, self.kits, self.durable = folder, pace, kits or {}, durable
        self.config = {
            "num_rounds": num_rounds, "round_timeout": 30.0, "heartbeat_interval": 0.25, "heartbeat_timeout": LEASE,
            "start_wait": 60.0, "extra_clients": 500, "stop_grace": stop_grace, **config,
        }  # fmt: skip
        self.limits = {"stall_timeout": STALL, "refusals_per_minute": 1_000_000, **(limits or {})}
        self.gate, self.links, self.beats, self.errors = Gate() if pace else None, {}, [], []
        self.finished = False
        self.honest = [Honest(number, pace, None if number else self.gate) for number in range(len(CLIENTS))]

    def __enter__(self):
        kit = str(self.kits["server"]) if self.kits else None
        self.server = Process(
            HERE / "served.py", folder=str(self.folder), config=self.config, limits=self.limits, kit=kit, durable=self.durable
        )
        self.server.__enter__()
        try:
            self.address = self.server.until("started")["started"]
            self.run_id = self.server.said[-1]["run"]
            self.threads = [threading.Thread(target=self._work, args=pair) for pair in enumerate(CLIENTS)]
            for thread in self.threads:
                thread.start()
            self.server.until("committed", PATIENCE, met=lambda line: line["committed"] >= 3)
        except BaseException as error:
            error.add_note(f"the honest clients: {self.errors}")
            self.server.__exit__()
            raise
        self.server.forget_peak()
        self.before = self.server.rss
        self.there = set(self._files())
        return self

    def _work(self, number, name):
        wire = Grpc(tls=TLS.kit(self.kits[name])) if self.kits else Grpc()
        with wire.connect(self.address) as connection:
            link = self.links[name] = Link(Timed(connection, self.beats), name, patience=10.0)
            try:
                Worker(link, self.honest[number]).run()
            except (FedcoreError, AssertionError) as error:
                self.errors.append((name, error))

    @property
    def late(self):
        """Seconds by which this process was late at most: on a crowded machine that is no fault of the server."""
        return max(each.late for each in self.honest)

    def credentials(self, name):
        """Return the gRPC credentials of a kit."""
        kit = self.kits[name]
        return grpc.ssl_channel_credentials(
            *((kit / f"{part}.pem").read_bytes() for part in ("authority", "key", "certificate"))
        )

    def is_serving(self):
        """Return whether the health check says so, and another call is answered; as clients do, make it again if it is lost."""
        until = time.monotonic() + SOON
        with self.channel() as channel:
            while True:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SOON)
                    channel.unary_unary("/fedcore.v1.FederatedLearningService/GetServerStatus")(b"", timeout=SOON)
                    return answer.status == health_pb2.HealthCheckResponse.SERVING
                except grpc.RpcError as error:
                    if not isinstance(status.error_of(error, ""), ConnectionLost) or time.monotonic() > until:
                        raise

    def counted(self):
        """Return how many refusals the server has counted."""
        with self.channel("watcher") as channel:
            told = channel.unary_unary("/fedcore.v1.FederatedLearningService/GetServerStatus")(b"", timeout=SOON)
            return sum(pb.GetServerStatusResponse.FromString(told).refused.values())

    def channel(self, kit="honest-0"):
        """Return a channel to the server, with a connection of its own, that sends messages of any size."""
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        options += [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if self.kits:
            return grpc.secure_channel(self.address, self.credentials(kit), options)
        return grpc.insecure_channel(self.address, options)

    def rounds(self):
        """Return the SHA-256 and the clients of each round."""
        return [(line["sha256"], line["accepted"]) for line in self.server.said if "committed" in line]

    def log(self):
        return (self.folder / "log").read_bytes().decode().splitlines()

    def logs(self, text, within):
        """Wait until the log says something; returns whether it does in so many seconds."""
        until, pause = time.monotonic() + within, threading.Event()
        while not (found := any(text in line for line in self.log())) and time.monotonic() < until:
            pause.wait(0.02)
        return found

    def warnings(self):
        """Return how many refusals the log tells of; many in a short time are one line with their number."""
        lines = [line for line in self.log() if ": refused " in line]
        return len(lines) + sum(int(more) for line in lines for more in re.findall(r"\((\d+) more", line))

    def _files(self):
        return (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))

    def finish(self):
        """Say that the run is over."""
        if not self.finished:
            self.server.tell("enough")
        self.finished = True

    def end(self):
        """Let the run come to its end."""
        if self.pace:
            self.finish()
        self.server.until("ended", PATIENCE)
        for thread in self.threads:
            thread.join(PATIENCE)

    def problems(self, control):
        """Return everything that does not hold, behind the end: what the attacks did to the honest ones and to the server."""
        found, rounds = [], self.rounds()
        if not 3 <= len(rounds) <= len(control):
            found.append(f"{len(rounds)} rounds, and {len(control)} to compare them with")
        found += [
            f"round {number} came out otherwise"
            for number, pair in enumerate(zip(rounds, control, strict=False), 1)
            if len(set(map(str, pair))) > 1
        ]
        found += [f"failed round: {line}" for line in self.server.said if "failed" in line]
        found += [f"{name} ended with {error!r}" for name, error in self.errors]
        if self.peak > self.before + BUDGET:
            found.append(f"the server grew by {(self.peak - self.before) / MIB:.0f} MiB")
        beats = sorted(self.beats)
        if beats[int(0.99 * len(beats))] > SLOWEST_BEAT + self.late:
            found.append(f"heartbeats took up to {beats[-1]:.2f} s")
        outside = {path for path in set(self._files()) - self.there if not path.startswith("here/state/")}
        found += [f"a new file: {path}" for path in sorted(outside)]
        lines = self.log()
        found += [
            f"a line of {len(line)}: {line[:100]!r}"
            for line in lines
            if len(line.encode()) > LONGEST_LINE or not line.isprintable()
        ]
        found += [f"in the log: {line[:200]}" for line in lines if not line.startswith("WARNING ")][:20]
        return found

    def note_peak(self):
        """Remember the most memory that the server has had, before it is gone."""
        self.peak = self.server.peak

    def __exit__(self, *error):
        self.server.__exit__()
        for thread in self.threads:
            thread.join(PATIENCE)
