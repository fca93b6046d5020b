"""A server on a bench: what reaches it, what its disk does, how time passes and when it dies is up to whoever drives it."""

from dataclasses import dataclass, field, replace

import torch

from fedcore import FedAvg, Limits, RoundPolicy, ServerConfig
from fedcore.broadcast import encode
from fedcore.errors import OutOfStorage
from fedcore.messages import Assigned, Beat, Pull, Register, Registered, Session, Status, Submit, Task
from fedcore.parameters import Spec
from fedcore.registry import codec
from fedcore.shards import SHARD_BYTES
from fedcore.testing.journal import Disk, MemoryJournal
from fedcore.testing.network import Network
from fedcore.testing.scheduler import Scheduler
from fedcore.testing.simulation import Process
from fedcore.transport import Request

UNIT = 720720.0  # every number up to 16 divides it: means of its multiples are whole, and exact
INITIAL = {"w": torch.zeros(2, dtype=torch.float64), "n": torch.tensor(0)}
SPEC, CODEC = Spec.of(INITIAL), codec("safetensors")
LEASE, DEADLINE, INTERVAL = 30.0, 100.0, 5.0


class Door(Network):
    """Keeps the handler of the server that listens."""

    handler = None

    def listen(self, address, handler, limits=Limits()):
        self.handler = handler
        return super().listen(address, handler, limits)


@dataclass
class Agent:
    """A process of a client; an older one may still speak when a newer one does."""

    client: str
    instance: str
    session: Session | None = None
    tasks: list[Task] = field(default_factory=list)
    todo: Task | None = None


@dataclass
class Parcel:
    """An update as it was sent."""

    agent: Agent
    header: Submit
    body: list
    value: float
    finite: bool = True


@dataclass(eq=False)
class Asked:
    """A request, and what is known of it."""

    agent: Agent
    message: object
    life: int
    at: float
    session: Session | None = None
    reply: object = None
    parcel: Parcel | None = None
    before: object = None
    current: bool = True  # whether the agent was the last that a server had taken in
    closed: bool = field(default=False)


class Bench:
    """Drives a server.

    Args:
        policy: of its rounds.
        rounds: how many.
        seed: of the order in which its threads run.
        witness: hears of everything.
    """

    def __init__(self, policy, rounds, seed, witness):
        self.scheduler = Scheduler(seed)
        self.door = Door(self.scheduler, delay=0.0)
        self.config = ServerConfig(
            num_rounds=rounds, policy=policy, heartbeat_interval=INTERVAL, heartbeat_timeout=LEASE, stop_grace=5.0
        )
        self.disk, self.life, self.server = Disk(), 0, None
        self.agents, self.parcels = {}, []
        self.full, self.doom, self.hold, self.held = False, None, "", []
        self.asked, self.errors = [], []
        self.witness = witness
        self.scheduler.crashed = self._died

    @property
    def machine(self):
        """The coordinator of the server that runs."""
        return self.server.hub.coordinator

    @property
    def up(self):
        """Whether a server runs and is reached."""
        return self.server is not None and self.door.handler is not None

    # --- the server ---

    def start(self):
        """Start a server on what the last one left."""
        self.life += 1
        group = f"server-{self.life}"
        journal = MemoryJournal(self.disk, passed=lambda point: self._pass(group, point))
        self.witness.restoring(journal)
        self.server = Process(
            group, self.door, journal, config=self.config, strategy=FedAvg(INITIAL),
            observers=[lambda event, life=self.life: self.witness.observed(event, life)],
        )  # fmt: skip
        self.scheduler.spawn(group, lambda: self._start(self.server), group)
        self.settle()
        if self.up:
            self.witness.started()

    def _start(self, server):
        try:
            server.start()
        except OutOfStorage:
            self.server = None
        except Exception as error:
            self.errors.append(error)

    def crash(self):
        """Kill the server, wherever it is."""
        self.scheduler.crash(self.server.group)

    def _died(self, group):
        if self.server is not None and self.server.group == group:
            self.server = None
        self.door.handler, self.doom, self.hold, self.held = None, None, "", []
        self.door.cut(group)
        for asked in self.asked:
            asked.closed = True
        self.asked = []
        self.witness.died()

    def retire(self):
        """Let go of a server whose run is over."""
        if self.server is not None and self.server._director.done.is_set():
            self.crash()

    def stop(self, suspend):
        """End the run, or leave it."""
        if suspend:
            self.server.hub.suspend()
        else:
            self.server.hub.stop("the server was stopped")
        self.settle()

    def _pass(self, group, point):
        """Come to a point of the journal."""
        if isinstance(self.doom, int):
            self.doom -= 1
        if self.doom == point or self.doom == -1:
            self.scheduler.crash(group)
        if self.full and point.endswith("before"):
            raise OutOfStorage("the disk is full")
        if point == self.hold:
            self.hold = ""
            self.held.append(self.scheduler.current)
            self.scheduler.wait()
        self.scheduler.pause()

    def release(self):
        """Let the disk be done with what it was held at."""
        held, self.held = self.held, []
        for fiber in held:
            self.scheduler.wake(fiber)
        self.settle()

    # --- time ---

    def settle(self):
        """Let everything run until it waits."""
        self.scheduler.settle()

    def advance(self, seconds):
        """Let time pass."""
        until = self.scheduler.now + seconds
        while self.scheduler.now < until:
            step = min(1.0, until - self.scheduler.now)
            self.witness.passes(step)
            self.scheduler.advance(step)

    # --- clients ---

    def agent(self, client):
        """Return the newest process of a client."""
        if client not in self.agents:
            self.replace(client)
        return self.agents[client][-1]

    def replace(self, client):
        """Start another process of a client."""
        older = self.agents.setdefault(client, [])
        older.append(Agent(client, f"{client}{len(older)}"))
        return older[-1]

    def ask(self, agent, message, parcel=None):
        """Send a message to the server, if there is one, and let it do what it does."""
        if not self.up:
            return None
        asked = Asked(agent, message, self.life, self.scheduler.now, getattr(message, "session", None), parcel=parcel)
        self.asked.append(asked)
        self.witness.asks(asked)
        body = parcel.body if parcel else ()
        self.scheduler.spawn("request", lambda: self._handle(asked, Request(message, body)), self.server.group)
        self.settle()
        self.witness.settled(asked)
        return asked.reply

    def _handle(self, asked, request):
        future = self.door.handler(request)
        future.add_done_callback(lambda done: self._heard(asked, done))

    def _heard(self, asked, future):
        if asked.closed or future.cancelled():
            return
        self.asked.remove(asked)
        asked.reply = future.exception() or future.result().message
        if isinstance(asked.reply, Registered):
            asked.agent.session = asked.reply.session
        elif isinstance(asked.reply, Assigned):
            asked.agent.todo = asked.reply.task
            asked.agent.tasks.append(asked.reply.task)
        self.witness.heard(asked)

    def register(self, agent):
        """Register a process, for the first time or again."""
        return self.ask(agent, Register(agent.client, "", ("safetensors",), instance=agent.instance))

    def beat(self, agent, status=Status.IDLE):
        """Send a sign of life."""
        return agent.session and self.ask(agent, Beat(agent.session, status))

    def pull(self, agent, wait):
        """Ask for a task."""
        return agent.session and self.ask(agent, Pull(agent.session, wait))

    def give_back(self, agent):
        """Give a task back."""
        task, agent.todo = agent.todo, None
        if agent.session and task:
            self.ask(agent, Beat(agent.session, Status.ERROR, round=task.round, task_id=task.id, message="no"))

    def submit(self, agent, task, value, weight, *, finite=True):
        """Send an update for a task."""
        if agent.session is None:
            return None
        if agent.todo is task:
            agent.todo = None
        model = {"w": torch.tensor([UNIT * value, -UNIT * value], dtype=torch.float64), "n": torch.tensor(value)}
        if not finite:
            model["w"][0] = float("nan")
        payload = encode(model, SPEC, CODEC, SHARD_BYTES)
        attempt = f"{agent.instance}-{len(self.parcels)}"
        header = Submit(agent.session, task.id, task.round, attempt, task.base_digest, weight, payload.manifest)
        parcel = Parcel(agent, header, [bytes(part) for part in payload.body], value, finite)
        self.parcels.append(parcel)
        return self.ask(agent, header, parcel)

    def resend(self, parcel, again):
        """Send an update once more: as it was, or under the session that its process has now (``again``)."""
        if again and parcel.agent.session:
            parcel = replace(parcel, header=replace(parcel.header, session=parcel.agent.session))
        return self.ask(parcel.agent, parcel.header, parcel)

    def close(self):
        """End everything."""
        self.scheduler.close()


POLICIES = [
    RoundPolicy(target=3, quorum=2, deadline=DEADLINE, extra=0, start_wait=10.0, max_failures=3),
    RoundPolicy(target=2, quorum=2, deadline=DEADLINE, extra=1, start_wait=10.0, max_failures=3),
    RoundPolicy(target=3, quorum=3, deadline=DEADLINE, extra=1, start_wait=10.0, max_failures=3),
    RoundPolicy(target=2, quorum=1, deadline=DEADLINE, extra=0, start_wait=10.0, max_failures=3),
]
