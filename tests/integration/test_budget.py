"""Room for updates: taken before the first byte, given back at once whatever becomes of the update."""

import contextlib
import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Memory, Server, ServerConfig, start_client
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import ConnectionLost, FedcoreError
from fedcore.messages import Assigned, Pull, Register, Submit
from fedcore.parameters import Spec
from fedcore.transports.grpc import TransferPolicy

INITIAL = {"w": torch.zeros(100_000)}
SPEC = Spec.of(INITIAL)
WIRES = {"memory": Memory, "stream": lambda: Grpc(transfer=TransferPolicy(mode="stream"))}
LIMITS = Limits(upload_memory=SPEC.nbytes, stall_timeout=0.2)


class Hand:
    """A client by hand: one connection, one task."""

    def __init__(self, wire, server, name):
        self.connection = wire.connect(server.address, LIMITS)
        self.session = self.connection.request(Register(name, accepts=("safetensors",))).message.session
        self.name = name

    def pull(self):
        answer = self.connection.request(Pull(self.session, 10.0)).message
        assert isinstance(answer, Assigned)
        self.task = answer.task
        return self

    def submit(self, spoil=lambda body: body, value=1.0):
        payload = encode({"w": torch.full((100_000,), value)}, SPEC, Safetensors(), 1 << 20)
        header = Submit(self.session, self.task.id, 1, self.name, self.task.base_digest, 1, payload.manifest)
        return self.connection.request(header, spoil(payload.body), timeout=20).message


def breaks_off(body):
    yield bytes(memoryview(body[0]))
    yield memoryview(body[1])[:200_000]
    raise ConnectionLost("the cable was pulled")


def too_short(body):
    yield body[0]
    yield memoryview(body[1])[:-4]


def too_long(body):
    yield from body
    yield b"more"


def other_bits(body):
    yield body[0]
    yield bytes(memoryview(body[1])[:-1]) + b"\x01"


@pytest.fixture(params=WIRES)
def wire(request):
    return WIRES[request.param]()


@pytest.fixture
def server(wire):
    config = ServerConfig(num_rounds=1, limits=LIMITS, stop_grace=0)
    strategy = FedAvg(INITIAL, min_fit_clients=2, clients_per_round=2)
    with Server(wire.anywhere, config=config, strategy=strategy, transport=wire) as running:
        yield running


@pytest.mark.parametrize("spoil", [breaks_off, too_short, too_long, other_bits])
def test_a_body_that_lies_or_breaks_off_gives_its_room_back(wire, server, spoil):
    hands = [Hand(wire, server, name) for name in "ab"]
    bad, good = (hand.pull() for hand in hands)
    with contextlib.suppress(FedcoreError):
        assert not bad.submit(spoil).counted
    assert good.submit(value=2.0).counted  # the budget has room for one: it would wait for ever
    assert server.hub.uploads.budget.waiting == 0
    for hand in hands:
        hand.connection.close()


def test_who_waits_gets_its_turn_when_the_one_before_is_gone(wire, server):
    hands = [Hand(wire, server, name) for name in "ab"]
    first, second = (hand.pull() for hand in hands)
    reading, release = threading.Event(), threading.Event()

    def slow(body):
        yield body[0]
        reading.set()
        release.wait(10)
        raise ConnectionLost("gone")

    errors = []

    def send():
        try:
            first.submit(slow)
        except FedcoreError as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert reading.wait(10)
    threading.Timer(0.05, release.set).start()
    assert second.submit().counted
    thread.join(10)
    assert len(errors) == 1
    for hand in hands:
        hand.connection.close()


def test_of_a_body_that_waits_nothing_is_sent(wire, server):
    hands = [Hand(wire, server, name) for name in "ab"]
    first, second = (hand.pull() for hand in hands)
    reading, release, asked = threading.Event(), threading.Event(), threading.Event()

    def slow(body):
        yield body[0]
        reading.set()
        release.wait(10)
        yield body[1]

    def watched(body):
        asked.set()
        yield from body

    def wait_in_line():
        while not server.hub.uploads.budget.waiting:
            assert not release.wait(0.01)
        assert not asked.wait(0.05)
        release.set()

    threads = [threading.Thread(target=first.submit, args=(slow,)), threading.Thread(target=second.submit, args=(watched,))]
    threads[0].start()
    assert reading.wait(10)
    threads[1].start()
    wait_in_line()
    for thread in threads:
        thread.join(10)
    assert asked.is_set()
    assert server.wait(10)[0].rounds[0].accepted == ["a", "b"]
    for hand in hands:
        hand.connection.close()


def test_the_default_budget_is_for_two_models_whatever_comes_between():
    """A small answer to another task, such as an evaluation, must not take the room of the models away."""

    class Evaluates(Client):
        def get_parameters(self):
            return {"w": torch.zeros(12_000_000)}  # 48 MB: two are above the least budget

        def fit(self, parameters, config):
            return parameters, 1

        def evaluate(self, parameters, config):
            return 0.5, 1

    strategy = FedAvg(Evaluates().get_parameters(), clients_per_round=1)
    with Server("", config=ServerConfig(num_rounds=1), strategy=strategy, transport=(wire := Memory())) as server:
        start_client(server.address, Evaluates(), "a", transport=wire)
        history, _ = server.wait(30)
        assert history.rounds[0].metrics["evaluate/loss"] == 0.5
        assert server.hub.uploads.budget.limit == 2 * 48_000_000


def test_a_first_model_is_counted_by_its_tensors():
    class First(Client):
        def get_parameters(self):
            return INITIAL

        def fit(self, parameters, config):
            return parameters, 1

    strategy = FedAvg(clients_per_round=1)
    with Server("", config=ServerConfig(num_rounds=1), strategy=strategy, transport=(wire := Memory())) as server:
        start_client(server.address, First(), "a", transport=wire)
        server.wait(10)
        assert server.status().traffic.tensor_bytes_received == 2 * SPEC.nbytes
