"""A process that forks beside a server or a client goes on; one that starts and stops them again and again leaves nothing."""

import gc
import multiprocessing
import os
import select
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedcore import Client, FedAvg, Grpc, Memory, Server, ServerConfig, digest, start_client
from fedcore.codecs.safetensors import Safetensors
from fedcore.parameters import Spec
from fedcore.testing import run_federation

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # from Python 3.12 on
]
MODEL = {"w": torch.zeros(3_000)}


class Adds(Client):
    """Does something beside each round that it trains for."""

    def __init__(self, number, beside=lambda: None):
        self.number, self.beside = number, beside

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.beside()
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        return {"w": parameters["w"] + torch.randn(3_000, generator=draw)}, 5 + self.number


class Steps(FedAvg):
    """Does something beside each step that it makes."""

    def __init__(self, beside):
        super().__init__(MODEL, min_fit_clients=2, clients_per_round=2)
        self.beside = beside

    def step(self, server_round, current, aggregate):
        self.beside()
        return super().step(server_round, current, aggregate)


def run(wire, *, beside=lambda: None, on_server=lambda: None, address=None, rounds=3):
    """Run a federation of two clients; ``beside`` is called in each round by a client, ``on_server`` by the strategy."""
    config = ServerConfig(num_rounds=rounds, heartbeat_interval=0.1, heartbeat_timeout=30.0)
    failures = []

    def work(client):
        try:
            start_client(server.address, client, f"client-{client.number}", transport=wire, patience=20.0)
        except BaseException as error:
            failures.append(error)
            server.hub.stop(str(error))

    where = wire.anywhere if address is None else address
    with Server(where, config=config, strategy=Steps(on_server), transport=wire) as server:
        threads = [threading.Thread(target=work, args=(client,)) for client in (Adds(0, beside), Adds(1))]
        for thread in threads:
            thread.start()
        try:
            history, final = server.wait(60)
        finally:
            for thread in threads:
                thread.join(20)
            for failure in failures:
                raise failure
    assert [record.outcome for record in history.rounds] == ["committed"] * rounds
    return digest(final)


def in_a_child(work):
    """Fork, do something in the child, and wait until it has said that it is done."""
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(hears)
            work()
            os.write(says, b"done")
            status = 0
        finally:
            os._exit(status)
    os.close(says)
    try:
        ready, _, _ = select.select([hears], [], [], 30.0)
        assert ready, "the child hangs"
        assert os.read(hears, 4) == b"done"
    finally:
        os.close(hears)
        if not ready:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def handle_a_model():
    """Do what a worker process of a training loop may do with fedcore."""
    model = {"a": torch.arange(1000.0), "b": torch.ones(3, 5, dtype=torch.bfloat16)}
    codec, spec = Safetensors(), Spec.of(model)
    again = codec.decode(b"".join(codec.encode(model)), spec)
    assert digest(again) == digest(model)


def run_another():
    run_federation([Adds(0), Adds(1)], strategy=FedAvg(MODEL, min_fit_clients=2), transport="memory")


CHILDREN = {"nothing": lambda: None, "a-model": handle_a_model, "garbage": gc.collect, "a-federation": run_another}
SLOW = ("garbage", "a-federation")  # they go through all that other tests have left in the process
SOME = [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in CHILDREN]
WIRES = {"grpc": Grpc, "memory": Memory}


@pytest.fixture(scope="module")
def control():
    return run(Memory())


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("child", SOME)
def test_f25_forking_beside_a_server_and_its_clients_holds_nothing_up(control, wire, child):
    def fork():
        in_a_child(CHILDREN[child])

    assert run(WIRES[wire](), beside=fork, on_server=fork) == control


@pytest.mark.parametrize("wire", WIRES)
def test_f25_a_training_loop_with_worker_processes(control, wire):
    """Two workers load the data, as forks of the process that has the connections."""
    data = TensorDataset(torch.arange(12.0))
    seen = []

    def load():
        loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=30)
        seen.extend(value for (batch,) in loader for value in batch.tolist())

    assert run(WIRES[wire](), beside=load) == control
    assert seen == 3 * list(range(12))


def square(number):
    handle_a_model()
    return number * number


@pytest.mark.parametrize("wire", WIRES)
def test_f25_a_pool_of_forks_on_the_server(control, wire):
    squares = []

    def in_a_pool():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            squares.append(pool.map_async(square, range(5)).get(30))

    assert run(WIRES[wire](), on_server=in_a_pool) == control
    assert squares == 3 * [[0, 1, 4, 9, 16]]


def test_f25_a_child_that_stays_keeps_neither_the_port_nor_a_connection():
    """It was forked in the middle of a run, and has a copy of every socket of it."""
    hears, says = os.pipe()
    children = []

    def fork():
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                os.close(says)
                os.read(hears, 1)  # until the parent closes its end
                os._exit(0)

    address = f"127.0.0.1:{free_port()}"
    try:
        first = run(Grpc(), beside=fork, address=address)
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0)  # it is there
        assert run(Grpc(), address=address) == first
    finally:
        os.close(hears), os.close(says)
        for child in children:
            os.waitpid(child, 0)


# --- again and again ---


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def counted():
    """Return how many threads the system knows, how many Python knows, and how many files are open."""
    return len(os.listdir("/proc/self/task")), threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads and files are counted in /proc")
@pytest.mark.parametrize("wire", WIRES)
def test_f25_starting_and_stopping_a_hundred_times_leaves_nothing(wire):
    address = f"127.0.0.1:{free_port()}"
    expected, settled = run(WIRES[wire](), address=address, rounds=1), threading.Event()
    for _ in range(4):
        run(WIRES[wire](), address=address, rounds=1)
    gc.collect()
    before = counted()
    for _ in range(100):
        assert run(WIRES[wire](), address=address, rounds=1) == expected  # at the same port
    gc.collect()
    for _ in range(200):
        if all(abs(now - then) <= 2 for now, then in zip(counted(), before, strict=True)):
            return
        settled.wait(0.05)
    pytest.fail(f"threads of the system, threads of Python, files: {before} before, {counted()} after")
