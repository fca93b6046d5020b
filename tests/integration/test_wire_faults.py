"""Faults of the network below gRPC: cut, silent, slow and noisy connections, and requests that arrive twice, change no bit."""

import threading
from collections import Counter
from time import monotonic

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Server, ServerConfig, Transport, digest, start_client
from fedcore.events import ClientLost, UpdateAccepted, UpdateRefused
from fedcore.messages import Assigned, Rest, Submit
from fedcore.testing import Doubling, Proxy, run_federation
from fedcore.transports.grpc import TransferPolicy

pytestmark = pytest.mark.chaos

NUMBERS = 75_000
BODY = 4 * NUMBERS
MODEL = {"w": torch.linspace(-1, 1, NUMBERS), "n": torch.tensor(0)}
PATIENCE = 60.0

MODES = pytest.mark.parametrize("mode", ["unary", "stream"])


class Moves(Client):
    """Moves the model at random; ``before_upload`` is called with the round when an update is ready."""

    def __init__(self, before_upload=lambda number: None):
        self.before_upload = before_upload

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(config["seed"])
        moved = {"w": parameters["w"] + torch.randn(NUMBERS, generator=draw), "n": parameters["n"] + 1}
        self.before_upload(config["round"])
        return moved, 10 + config["round"]


class Watched(Transport):
    """Tells ``answered(message, reply)`` of every request that the server has answered, before its client hears of it."""

    def __init__(self, inner, answered):
        self.inner, self.answered, self.anywhere = inner, answered, inner.anywhere

    def listen(self, address, handler, limits=Limits()):
        def watch(request):
            future = handler(request)
            future.add_done_callback(lambda done: self._tell(request.message, done))
            return future

        return self.inner.listen(address, watch, limits)

    def connect(self, address, limits=Limits()):
        return self.inner.connect(address, limits)

    def _tell(self, message, done):
        if not done.cancelled() and not done.exception():
            self.answered(message, done.result().message)


def grpc(mode):
    return Grpc(transfer=TransferPolicy(mode=mode), chunk_bytes=1 << 16)


class Federation:
    """A server, with ``clients`` on threads of their own that connect where they are told."""

    def __init__(self, wire, clients, *, rounds=3, answered=lambda message, reply: None, **config):
        self.wire, self.number, self.events, self.threads, self.failures = wire, clients, [], [], []
        self.server = Server(
            wire.anywhere, strategy=FedAvg(MODEL, min_fit_clients=clients, clients_per_round=clients),
            config=ServerConfig(num_rounds=rounds, **config), transport=Watched(wire, answered), observers=[self.events.append],
        )  # fmt: skip

    def join(self, number, address, client=None):
        def work():
            try:
                start_client(address, client or Moves(), f"client-{number}", transport=self.wire, patience=PATIENCE)
            except BaseException as error:
                self.failures.append(error)

        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def end(self, patience=PATIENCE):
        """Wait for the end of the run, and check that every client was counted once in each round; return the digest."""
        history, final = self.server.wait(patience)
        for thread in self.threads:
            thread.join(PATIENCE)
        assert not self.failures
        everybody = [f"client-{number}" for number in range(self.number)]
        assert [record.accepted for record in history.rounds] == [everybody] * len(history.rounds)
        counted = Counter((e.client_id, e.round) for e in self.events if isinstance(e, UpdateAccepted))
        assert set(counted.values()) == {1}
        assert not [event for event in self.events if isinstance(event, ClientLost)]
        return digest(final)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *error):
        self.server.stop()
        for thread in self.threads:
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def undisturbed():
    """Return the digest after a run of so many clients and rounds that nothing disturbs."""
    found = {}

    def run(clients, rounds=3):
        if (clients, rounds) not in found:
            strategy = FedAvg(MODEL, min_fit_clients=clients, clients_per_round=clients)
            config = ServerConfig(num_rounds=rounds)
            _, final = run_federation([Moves() for _ in range(clients)], strategy=strategy, config=config)
            found[clients, rounds] = digest(final)
        return found[clients, rounds]

    return run


# --- cut connections ---


HOWS = {2: "close", 3: "reset"}  # by round


class Cutter:
    """Cuts the transfers of client-0 in one direction: the first not at all, the second by closing, the third by a reset.

    ``after`` bytes of one pass; of the first it learns how many that are if they are "all", or all "but one".
    """

    def __init__(self, proxy, direction, after):
        self.proxy, self.direction, self.after = proxy, direction, after
        self.start, self.length, self.begun, self.ended = 0, 0, set(), set()

    def begin(self, number):
        if number in self.begun:
            return
        self.begun.add(number)
        if number == 1:
            self.start = self.proxy.passed[self.direction]
        elif number < 4 and not self.by_hand:
            after = {"but one": self.length - 1, "all": self.length}.get(self.after, self.after)
            self.proxy.cut(after, HOWS[number], times=1, direction=self.direction)

    def end(self, number):
        if number in self.ended:
            return
        self.ended.add(number)
        if number == 1:  # the server may have the last bytes before the proxy has counted them
            assert self.proxy.wait_for(lambda: self.proxy.passed[self.direction] - self.start > BODY, PATIENCE)
            self.length = self.proxy.passed[self.direction] - self.start
        elif number < 4 and self.by_hand:
            self.proxy.drop(HOWS[number])

    @property
    def by_hand(self):
        """Whether the server must have it all, and its client not yet know: no number of bytes says exactly that."""
        return (self.direction, self.after) == ("up", "all")

    def answered(self, message, reply):
        if isinstance(message, Submit) and self.direction == "up" and message.session.client_id == "client-0":
            self.end(message.round)
        elif isinstance(reply, Assigned) and self.direction == "down" and message.session.client_id == "client-0":
            self.begin(reply.task.round)

    def before_upload(self, number):
        (self.begin if self.direction == "up" else self.end)(number)


@MODES
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("after", [0, 1, 9, 1 << 16, BODY // 2, "but one", "all"])
def test_a_transfer_that_is_cut_is_made_again(mode, direction, after, undisturbed):
    cutter = None
    with (
        Federation(grpc(mode), 2, rounds=4, answered=lambda *both: cutter.answered(*both)) as federation,
        Proxy(federation.server.address) as proxy,
    ):
        cutter = Cutter(proxy, direction, after)
        federation.join(0, proxy.address, Moves(cutter.before_upload))
        federation.join(1, federation.server.address)
        assert federation.end() == undisturbed(2, 4)
        assert cutter.length > BODY
        cuts = [incident.what for incident in proxy.log if incident.what != "ended"]
        assert cuts == (["dropped"] * 4 if cutter.by_hand else ["cut"] * 2)
        assert proxy.connections >= 3


# --- silence ---


def silence(seconds, mode, undisturbed, dropped):
    """Swallow all that one of two clients and the server say from an upload on; return how long it took them to talk again."""
    silent, news, uploads = threading.Event(), threading.Condition(), []

    def swallow(number):
        if number == 2 and not silent.is_set():
            if dropped:
                proxy.drop()
            proxy.black_hole()
            silent.set()

    def answered(message, reply):
        with news:
            if isinstance(message, Submit) and message.session.client_id == "client-0" and message.round == 2:
                uploads.append(monotonic())
                news.notify_all()

    with (
        Federation(grpc(mode), 2, answered=answered, heartbeat_interval=0.2) as federation,
        Proxy(federation.server.address) as proxy,
    ):
        federation.join(0, proxy.address, Moves(swallow))
        federation.join(1, federation.server.address)
        assert silent.wait(PATIENCE)
        before = dict(proxy.passed)
        assert not proxy.wait_for(lambda: proxy.passed != before, seconds)
        proxy.heal()
        healed = monotonic()
        with news:
            assert news.wait_for(lambda: uploads, PATIENCE)
        assert federation.end() == undisturbed(2)
    return uploads[0] - healed


@MODES
@pytest.mark.parametrize("dropped", [False, True], ids=["held", "dropped"])
def test_a_client_is_back_soon_after_a_silence(mode, dropped, undisturbed):
    assert silence(1.0, mode, undisturbed, dropped) < 5.0


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("dropped", [False, True], ids=["held", "dropped"])
def test_a_client_is_back_soon_after_half_a_minute_of_silence(mode, dropped, undisturbed):
    assert silence(30.0, mode, undisturbed, dropped) < 5.0


# --- slow lines ---


def crawl(mode, faults, undisturbed, rounds, patience=PATIENCE, **config):
    """Run over lines that are slow in both directions."""
    with Federation(grpc(mode), 2, rounds=rounds, **config) as federation, Proxy(federation.server.address, seed=1) as proxy:
        for name, values in faults.items():
            getattr(proxy, name)(*values)
        for number in range(2):
            federation.join(number, proxy.address)
        assert federation.end(patience) == undisturbed(2, rounds)


@MODES
@pytest.mark.parametrize("faults", [
    {"latency": (0.05, 0.05)}, {"bandwidth": (2 << 20,)}, {"slicer": (64,)},
    {"latency": (0.02, 0.02), "bandwidth": (4 << 20,), "slicer": (256,)},
], ids="+".join)  # fmt: skip
def test_nobody_is_lost_on_a_slow_line(mode, faults, undisturbed):
    crawl(mode, faults, undisturbed, 2, heartbeat_interval=0.2, heartbeat_timeout=2.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@MODES
@pytest.mark.parametrize("faults", [
    {"latency": (0.2, 0.2)}, {"bandwidth": (256 << 10,)}, {"slicer": (1,)},
    {"latency": (0.2, 0.2), "bandwidth": (256 << 10,), "slicer": (1,)},
], ids="+".join)  # fmt: skip
def test_nobody_is_lost_on_a_very_slow_line(mode, faults, undisturbed):
    crawl(mode, faults, undisturbed, 1, patience=400, heartbeat_interval=1.0, heartbeat_timeout=10.0)


# --- requests that arrive twice ---


@MODES
@pytest.mark.parametrize("order", ["sequence", "concurrent"])
@pytest.mark.parametrize("reorder", [0.0, 0.3])
def test_every_request_may_arrive_twice(mode, order, reorder, undisturbed):
    with (
        Federation(grpc(mode), 3, heartbeat_interval=0.05) as federation,
        Doubling(grpc(mode), federation.server.address, order, reorder=reorder, hold=0.2, seed=1) as doubling,
    ):
        for number in range(3):
            federation.join(number, doubling.address)
        assert federation.end() == undisturbed(3)
        assert doubling.doubled["Register"] >= 3
        assert doubling.doubled["Submit"] >= 9


# --- changed bits ---


@MODES
@pytest.mark.parametrize("direction", ["up", "down"])
def test_changed_bits_are_noticed_and_sent_again(mode, direction, undisturbed, caplog):
    caplog.set_level("DEBUG", "fedcore.retry")
    models = []

    def answered(message, reply):
        if isinstance(reply, Rest if mode == "stream" else Assigned):
            models.append(reply)

    with (
        Federation(grpc(mode), 2, rounds=10, answered=answered) as federation,
        Proxy(federation.server.address, seed=1) as proxy,
    ):
        proxy.flip(1 << 20, direction=direction)
        for number in range(2):
            federation.join(number, proxy.address)
        assert federation.end() == undisturbed(2, 10)
        flips = [incident for incident in proxy.log if incident.what == "flipped"]
    refused = [event.reason for event in federation.events if isinstance(event, UpdateRefused)]
    assert set(refused) <= {"CHECKSUM"}
    assert len(flips) >= 4
    tried = [record for record in caplog.records if record.message == "a message changed on the way; trying again"]
    again = len(refused) + len(tried) if direction == "up" else len(models) - 20
    assert len(flips) / 2 <= again <= len(flips)  # two bits may have flipped in one transfer
