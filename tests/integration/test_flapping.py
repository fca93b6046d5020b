"""A client that registers again and again is told to come later, and nobody else feels it."""

import logging
import threading
import time

import grpc
import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Memory, Server, ServerConfig, digest, events, reception, start_client
from fedcore.errors import ConfigError, TooOften
from fedcore.messages import Assigned, Beat, Pull, Register, Status, Wait
from fedcore.pace import Pace
from fedcore.testing import FakeClock
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.client import SERVICE

pytestmark = pytest.mark.chaos

MODEL = {"w": torch.zeros(5_000)}
HONEST = ("client-0", "client-1", "client-2")


class Site:
    """A server whose clock a test moves, and one connection to it."""

    def __init__(self, *, clients=3, **settings):
        self.clock = FakeClock(100.0)
        strategy = FedAvg(MODEL, min_fit_clients=clients, clients_per_round=clients)
        config = ServerConfig(num_rounds=1, **{"stop_grace": 0.0, **settings})
        self.server = Server("", config=config, strategy=strategy, transport=Memory(), clock=self.clock)

    def __enter__(self):
        self.server.start()
        self.connection = Memory().connect(self.server.address)
        return self

    def __exit__(self, *error):
        self.connection.close()
        self.server.stop()

    def register(self, name, instance=""):
        return self.connection.request(Register(name, accepts=("safetensors",), instance=instance)).message.session

    def passes(self, name, times):
        """Return how many of so many registrations pass."""
        passed = 0
        for number in range(times):
            try:
                self.register(name, f"{name}-{number}-{self.clock.now()}")
                passed += 1
            except TooOften:
                pass
        return passed


def test_f21_a_client_may_register_ten_times_in_a_row_and_then_once_a_second():
    with Site() as site:
        assert site.passes("a", 50) == 10
        with pytest.raises(TooOften, match=r"client 'a' registers too often; it may again in 1\.0 s"):
            site.register("a")
        site.clock.advance(0.5)
        assert site.passes("a", 50) == 0
        site.clock.advance(0.5)
        assert site.passes("a", 50) == 1
        site.clock.advance(3.0)
        assert site.passes("a", 50) == 3
        site.clock.advance(9.0)
        assert site.passes("b", 50) == 10  # each client has its own
        assert site.passes("a", 50) == 9
        site.clock.advance(3600.0)
        assert site.passes("a", 50) == 10  # rest is not saved up


@pytest.mark.parametrize(("a_minute", "seconds"), [(1, 60.0), (7, 60 / 7), (600, 0.1)])
def test_f21_the_rate_is_the_configured_one(a_minute, seconds):
    with Site(limits=Limits(registrations_per_minute=a_minute)) as site:
        assert site.passes("a", 12) == 10
        site.clock.advance(seconds - 0.001)
        assert site.passes("a", 3) == 0
        site.clock.advance(0.001)
        assert site.passes("a", 3) == 1


def test_f21_a_crowd_of_new_names_is_let_in_at_once():
    with Site() as site:
        assert sum(site.passes(f"c{number}", 1) for number in range(1_000)) == 1_000


def test_f21_a_flood_of_new_names_is_not(monkeypatch):
    assert reception._STRANGERS_IN_A_ROW == 10_000
    monkeypatch.setattr(reception, "_STRANGERS_IN_A_ROW", 100)
    with Site() as site:
        for number in range(100):
            site.register(f"c{number}")
        with pytest.raises(TooOften, match=r"client 'stranger' registers too often; it may again in 0\.0 s"):
            site.register("stranger")
        site.register("c5")  # is known
        site.clock.advance(0.02)
        assert [site.passes(f"s{number}", 1) for number in range(4)] == [1, 1, 0, 0]


def test_f21_after_a_restart_clients_that_are_known_are_no_strangers(tmp_path):
    for again in range(2):
        with Site(state_dir=str(tmp_path / "state")) as site:
            if again:
                site.server.hub.reception._strangers = Pace(1e-9, 1)  # one stranger, and no more for a long time
                assert site.passes("stranger", 1) == 1
                assert site.passes("another", 1) == 0
            for number in range(3):
                site.register(f"c{number}", f"process-{again}")
            site.server.suspend()


def test_f21_only_names_of_clients_are_counted():
    with Site() as site:
        for _ in range(20):
            with pytest.raises(ConfigError):
                site.register("../" * 20_000)
        assert len(site.server.hub.reception._pace) == 0


def test_f21_what_is_remembered_has_an_end():
    pace = Pace(rate=1.0, row=10)
    for number in range(50_000):
        assert pace.late(f"name-{number}", 5.0) == 0.0
    assert len(pace) == 16_384
    for _ in range(9):
        assert pace.late("name-49999", 5.0) == 0.0
    assert pace.late("name-49999", 5.0) == 1.0
    assert pace.late("last", 15.0) == 0.0
    assert len(pace) == 1


def test_f21_a_client_that_keeps_coming_loses_its_place_and_gets_one_when_it_comes_for_work():
    with Site(clients=2) as site:
        flapping, second, third = (site.register(name) for name in ("a", "b", "c"))
        site.server.hub.wake()
        while not isinstance(site.connection.request(Pull(second, 0.0)).message, Assigned):
            pass  # the round opens for the first two
        assert isinstance(site.connection.request(Pull(third, 0.0)).message, Wait)
        assert site.passes("a", 11) == 9
        assert isinstance(site.connection.request(Pull(third, 0.0)).message, Assigned)  # what was to be done by the first
        by_name = {client.client_id: client for client in site.server.status().clients}
        assert by_name["a"].status is Status.ERROR
        site.clock.advance(1.0)
        again = site.register("a")
        assert again != flapping
        assert isinstance(site.connection.request(Pull(again, 0.0)).message, Wait)
        site.connection.request(Beat(third, Status.ERROR, 1, task_id="fit-1-c"))
        assert isinstance(site.connection.request(Pull(again, 0.0)).message, Assigned)


def test_f21_the_status_is_resource_exhausted():
    with Server("127.0.0.1:0", config=ServerConfig(), strategy=FedAvg(MODEL)) as server:
        request = wire.pack_register(Register("a", accepts=("safetensors",))).SerializeToString()
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(f"/{SERVICE}/RegisterClient")
            for _ in range(10):
                call(request)
            with pytest.raises(grpc.RpcError) as refused:
                call(request)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class Paced(Client):
    """Goes slowly while there is a disturbance, and ends the last round behind it."""

    def __init__(self, number, calm, rounds):
        self.number, self.calm, self.rounds = number, calm, rounds

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        self.calm.wait(120.0 if config["round"] == self.rounds else 0.3)
        draw = torch.Generator().manual_seed(1000 * config["round"] + self.number)
        return {"w": parameters["w"] + torch.randn(5_000, generator=draw)}, 5 + self.number


def run(disturb, folder, *, rounds=6):
    """Return the digest of a run of three clients, who was in which round, what was lost, and what ``disturb`` returned."""
    calm, lost, failures = threading.Event(), [], []
    config = ServerConfig(
        num_rounds=rounds, heartbeat_interval=0.2, heartbeat_timeout=5.0, start_wait=0.0, round_timeout=60.0,
        audit_log=str(folder / "audit.jsonl"),
    )  # fmt: skip

    def note(event):
        if isinstance(event, events.ClientLost | events.RoundFailed):
            lost.append(event)

    def work(number):
        try:
            start_client(server.address, Paced(number, calm, rounds), HONEST[number])
        except Exception as error:
            failures.append(error)

    strategy = FedAvg(MODEL, min_fit_clients=3, clients_per_round=3)
    with Server("127.0.0.1:0", config=config, strategy=strategy, observers=[note]) as server:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        found = disturb(server)
        calm.set()
        history, final = server.wait(60)
        for thread in threads:
            thread.join(20)
    assert failures == []
    mine = [[name for name in record.accepted if name in HONEST] for record in history.rounds]
    return digest(final), mine, [event for event in lost if getattr(event, "client_id", "") != "flapper"], found


def flap(address, seconds, *, rate=50):
    """Register over new connections, so many times a second, and return how many passed and how many were refused."""
    wire, passed, refused, pause = Grpc(), 0, 0, threading.Event()
    begun = time.monotonic()
    for number in range(int(seconds * rate)):
        pause.wait(max(0.0, begun + number / rate - time.monotonic()))
        with wire.connect(address) as connection:
            try:
                connection.request(Register("flapper", accepts=("safetensors",), instance=f"p{number}"), timeout=10.0)
                passed += 1
            except TooOften:
                refused += 1
    return passed, refused, time.monotonic() - begun


def flap_beside(server, seconds):
    """Do so beside a run; return also which round that is in then."""
    return *flap(server.address, seconds), server.status().round


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_f21_a_flapping_client_is_held_back_and_the_others_do_not_feel_it(tmp_path, seconds, caplog):
    for name in ("control", "disturbed"):
        (tmp_path / name).mkdir()
    control = run(lambda server: None, tmp_path / "control")
    caplog.set_level(logging.INFO)
    *disturbed, (passed, refused, took, reached) = run(lambda server: flap_beside(server, seconds), tmp_path / "disturbed")
    lines = [record for record in caplog.records if "flapper" in record.getMessage()]
    assert disturbed == list(control[:3])
    assert control[1] == [list(HONEST)] * 6
    assert reached == 6  # the last, which waits for the end of it: no round was held up
    assert passed + refused == 50 * seconds
    assert 10 <= passed <= 11 + took
    assert 1 <= len(lines) <= took + 1
    audited = [line for line in (tmp_path / "disturbed" / "audit.jsonl").read_text().splitlines() if "ClientRegistered" in line]
    assert 1 < sum("flapper" in line for line in audited) <= took + 2
    assert all(record.levelno == logging.WARNING for record in lines)


def test_f21_a_client_that_is_refused_tries_again_by_itself():
    with Server("127.0.0.1:0", config=ServerConfig(num_rounds=1), strategy=FedAvg(MODEL, clients_per_round=1)) as server:
        with Grpc().connect(server.address) as connection:
            for number in range(10):
                connection.request(Register("a", accepts=("safetensors",), instance=f"p{number}"))
            with pytest.raises(TooOften):
                connection.request(Register("a", accepts=("safetensors",), instance="p10"))
        calm = threading.Event()
        calm.set()
        start_client(server.address, Paced(0, calm, 1), "a", patience=20.0)
        history, _ = server.wait(20)
    assert history.rounds[0].accepted == ["a"]


def test_f21_a_client_whose_session_is_gone_and_who_is_refused_goes_on_later():
    """It hears of both in the middle of its work: the run still ends with it."""
    calm, waited = threading.Event(), threading.Event()

    class Slow(Paced):
        def fit(self, parameters, config):
            waited.set()
            return super().fit(parameters, config)

    with Server("127.0.0.1:0", config=ServerConfig(num_rounds=1), strategy=FedAvg(MODEL, clients_per_round=1)) as server:
        thread = threading.Thread(target=start_client, args=(server.address, Slow(0, calm, 1), "a"))
        thread.start()
        assert waited.wait(20)
        with server.hub.turn() as machine:
            process = machine.roster.instances["a"]
            machine.roster.evict("a", "", 0.0)
        with Grpc().connect(server.address) as connection:
            for _ in range(9):
                connection.request(Register("a", accepts=("safetensors",), instance=process))
            with server.hub.turn() as machine:
                machine.roster.evict("a", "", 0.0)
            with pytest.raises(TooOften):
                connection.request(Register("a", accepts=("safetensors",), instance=process))
        calm.set()
        history, _ = server.wait(30)
        thread.join(20)
    assert history.rounds[0].accepted == ["a"]
