"""Bodies that break off are gone on with: no byte that arrived is sent again, over however many connections."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Server, ServerConfig, digest, start_client
from fedcore.errors import ProtocolError
from fedcore.messages import Fetch, Pull, Register
from fedcore.testing import Proxy, run_federation
from fedcore.transports.grpc import TransferPolicy
from fedcore.transports.memory import Memory

pytestmark = pytest.mark.chaos

MIB = 1 << 20
PATIENCE = 60.0


class Moves(Client):
    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(config["seed"])
        return {"w": parameters["w"] + torch.randn(parameters["w"].shape, generator=draw)}, 3


def model(mib):
    return {"w": torch.linspace(-1, 1, mib * MIB // 4)}


def strategy(mib):
    return FedAvg(model(mib), min_fit_clients=1, clients_per_round=1)


@pytest.fixture(scope="module")
def undisturbed():
    """Return the digest of two rounds of one client, by the size of the model."""
    found = {}

    def run(mib):
        if mib not in found:
            found[mib] = digest(run_federation([Moves()], strategy=strategy(mib), config=ServerConfig(num_rounds=2))[1])
        return found[mib]

    return run


class Federation:
    """A server and one client, with a proxy between them."""

    def __init__(self, mib, wire, limits=Limits()):
        self.wire, self.limits, self.failures = wire, limits, []
        self.server = Server(
            wire.anywhere, strategy=strategy(mib), transport=wire,
            config=ServerConfig(num_rounds=2, heartbeat_interval=0.2, limits=limits),
        )  # fmt: skip
        self.server.start()
        self.proxy = Proxy(self.server.address)
        self.thread = threading.Thread(target=self.work)

    def work(self):
        try:
            start_client(
                self.proxy.address, Moves(), "client-0", transport=self.wire, patience=PATIENCE, limits=self.limits
            )
        except Exception as error:
            self.failures.append(error)

    def run(self):
        """Run to the end, and return the digest."""
        self.thread.start()
        _, final = self.server.wait(PATIENCE)
        self.thread.join(PATIENCE)
        assert not self.failures
        return digest(final)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.stop()
        self.proxy.close()
        self.thread.join(PATIENCE)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize(("mode", "mib"), [("stream", 8), ("unary", 24)])
def test_over_a_link_that_never_lasts_for_a_whole_body(mode, mib, direction, how, undisturbed):
    """No connection carries more than 5 MiB; a body that began anew each time would never arrive."""
    wire = Grpc(transfer=TransferPolicy(threshold_bytes=100 * MIB, mode=mode), chunk_bytes=MIB // 4)
    with Federation(mib, wire) as federation:
        federation.proxy.cut(5 * MIB, how, direction=direction)
        assert federation.run() == undisturbed(mib)
        cuts = [each for each in federation.proxy.log if each.what == "cut"]
        lost = MIB * (2 + 3 * len(cuts)) + (5 * MIB if mode == "unary" else 0)  # under way when it broke; came in one message
        assert len(cuts) >= 2 * mib // 5
        assert federation.proxy.passed[direction] <= 2 * mib * MIB + lost


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_transfer_that_stands_still_goes_on_over_another_connection(direction, undisturbed):
    wire = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=MIB // 4)
    with Federation(8, wire, Limits(stall_timeout=0.3)) as federation:
        federation.proxy.cut(5 * MIB, "hang", times=1, direction=direction)
        assert federation.run() == undisturbed(8)
        assert [each.what for each in federation.proxy.log if each.what != "ended"] == ["hung"]


def test_where_nothing_is_kept_an_update_is_sent_again_as_a_whole(undisturbed):
    wire = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=MIB // 4)
    for kept, least, most in ((0, 21, 25), (None, 16, 20)):
        with Federation(8, wire, Limits(resume_memory=kept)) as federation:
            federation.proxy.cut(5 * MIB, "reset", times=1, direction="up")
            assert federation.run() == undisturbed(8)
            assert least * MIB <= federation.proxy.passed["up"] <= most * MIB


@pytest.mark.parametrize("wire", [Memory(), Grpc()], ids=["memory", "grpc"])
def test_m3_a_rest_that_there_is_not(wire):
    with (
        Server(wire.anywhere, config=ServerConfig(stop_grace=0), strategy=strategy(1), transport=wire) as server,
        wire.connect(server.address) as connection,
    ):
        session = connection.request(Register("a", accepts=("safetensors",))).message.session
        assigned = connection.request(Pull(session, 10.0)).message
        task, total = assigned.task.id, assigned.manifest.total_bytes
        for length, offset in ((total, total + 1), (total, (1 << 64) - 1), (total - 1, 0), (total + 1, 0), (0, 0)):
            with pytest.raises(ProtocolError) as caught:
                list(connection.request(Fetch(session, task, length, offset)).body)
            assert caught.value.reason == "BAD_OFFSET"
        whole = b"".join(connection.request(Fetch(session, task, total)).body)
        assert [b"".join(connection.request(Fetch(session, task, total, at)).body) for at in (1, total)] == [whole[1:], b""]

