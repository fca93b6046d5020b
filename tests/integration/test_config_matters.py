"""Every field of ServerConfig changes what happens; the ones that other tests show are named at the end."""

import random
import threading
from dataclasses import fields

import torch

from fedcore import Client, FedAvg, Limits, Memory, Server, ServerConfig, start_client
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.events import RoundOpened
from fedcore.messages import Assigned, Pull, Register, Submit
from fedcore.parameters import Spec
from fedcore.testing import run_federation

INITIAL = {"w": torch.zeros(3000)}


class Adds(Client):
    def __init__(self):
        self.seeds = []

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        self.seeds.append(config["seed"])
        return {"w": parameters["w"] + 1}, 1


def seeds(seed):
    clients = [Adds(), Adds()]
    run_federation(
        clients, strategy=FedAvg(INITIAL, min_fit_clients=2), config=ServerConfig(num_rounds=2, seed=seed)
    )
    return [client.seeds for client in clients]


def test_seed_and_num_rounds():
    assert seeds(1) == seeds(1)
    assert seeds(1) != seeds(2)
    assert len({seed for each in seeds(1) for seed in each}) == 4  # two clients, two rounds


def test_extra_clients_are_invited():
    opened = []
    run_federation(
        [Adds() for _ in range(3)],
        strategy=FedAvg(INITIAL, clients_per_round=2, min_fit_clients=2),
        config=ServerConfig(num_rounds=4, extra_clients=1),
        observers=[lambda event: opened.append(event) if isinstance(event, RoundOpened) else None],
    )
    assert max(len(event.invited) for event in opened) == 3
    assert {event.target for event in opened} == {2}


def test_what_clients_are_told_about_heartbeats():
    config = ServerConfig(heartbeat_interval=0.25, heartbeat_timeout=7.5, stop_grace=0)
    with Server("", config=config, strategy=FedAvg(INITIAL), transport=Memory()) as server:
        with Memory().connect(server.address) as connection:
            welcome = connection.request(Register("a", accepts=("safetensors",))).message
        assert (welcome.heartbeat_interval, welcome.heartbeat_timeout) == (0.25, 7.5)


def test_upload_memory_bounds_the_updates_in_memory():
    """Four clients hand in at once, and each body waits in the middle: no more than two are being read."""
    reading, most, lock, release = set(), [0], threading.Lock(), threading.Event()

    def slow(name, body):
        with lock:
            reading.add(name)
            most[0] = max(most[0], len(reading))
            if len(reading) == 2:
                threading.Timer(0.1, release.set).start()  # time for a third to come, if it can
        release.wait(10)
        yield from body
        with lock:
            reading.discard(name)

    def work(name):
        with Memory().connect(server.address) as connection:
            session = connection.request(Register(name, accepts=("safetensors",))).message.session
            assigned = connection.request(Pull(session, 10.0)).message
            assert isinstance(assigned, Assigned)
            spec = Spec.of(INITIAL)
            payload = encode(INITIAL, spec, Safetensors(), 1 << 20)
            submit = Submit(session, assigned.task.id, 1, name, assigned.task.base_digest, 1, payload.manifest)
            assert connection.request(submit, slow(name, payload.body), timeout=20).message.counted

    config = ServerConfig(num_rounds=1, limits=Limits(upload_memory=2 * Spec.of(INITIAL).nbytes), stop_grace=0)
    strategy = FedAvg(INITIAL, clients_per_round=4, min_fit_clients=4)
    with Server("", config=config, strategy=strategy, transport=Memory()) as server:
        threads = [threading.Thread(target=work, args=(f"client-{index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        history, _ = server.wait(30)
        for thread in threads:
            thread.join(10)
    assert most[0] == 2
    assert len(history.rounds[0].accepted) == 4


def test_stop_grace_waits_for_clients_that_have_not_heard_of_the_end():
    for grace, at_least in ((0.0, 0.0), (0.6, 0.6)):
        config = ServerConfig(num_rounds=1, stop_grace=grace, heartbeat_interval=60.0, heartbeat_timeout=120.0)
        clock = threading.Event()
        with Server("", config=config, strategy=FedAvg(INITIAL, clients_per_round=1), transport=Memory()) as server:
            with Memory().connect(server.address) as connection:  # joins, and is never heard of again
                connection.request(Register("silent", accepts=("safetensors",)))
            started = server._clock.now()
            server.hub.stop("enough")
            server._director.done.wait(10)
            took = server._clock.now() - started
        clock.set()
        assert at_least <= took < at_least + 0.5


def test_start_wait_opens_with_fewer_clients():
    config = ServerConfig(num_rounds=1, start_wait=0.05)
    wire = Memory()
    with Server("", config=config, strategy=FedAvg(INITIAL, clients_per_round=5), transport=wire) as server:
        thread = threading.Thread(target=start_client, args=(server.address, Adds(), "a"), kwargs={"transport": wire})
        thread.start()
        history, _ = server.wait(20)
        thread.join(10)
    assert history.rounds[0].accepted == ["a"]


def test_start_clients_are_those_that_the_first_round_chooses_from():
    config = ServerConfig(num_rounds=3, start_clients=8, start_wait=60.0)
    history, _ = run_federation([Adds() for _ in range(8)], strategy=FedAvg(INITIAL, clients_per_round=2), config=config)
    names = [f"client-{index}" for index in range(8)]
    strategy = FedAvg(clients_per_round=2)
    wanted = [strategy.select(number, names, random.Random(f"0/select/{number}"))[:2] for number in (1, 2, 3)]
    assert [sorted(record.accepted) for record in history.rounds] == [sorted(each) for each in wanted]


def test_nothing_is_left_out():
    here = {
        "num_rounds", "seed", "extra_clients", "heartbeat_interval", "heartbeat_timeout", "stop_grace", "start_wait",
        "start_clients",
    }  # fmt: skip
    elsewhere = {
        "round_timeout": "test_killed_client.py",
        "max_failures": "test_bad_updates.py",
        "evaluate_timeout": "test_evaluation.py",
        "accept_codecs": "test_negotiation.py",
        "policy": "test_config.py",
        "limits": "below",
        "shard_bytes": "test_matrix.py",
        "map_above": "test_big_models.py",
        "map_folder": "test_big_models.py",
        "delta_codec": "test_wire_bytes.py",
        "state_dir": "test_resume.py",
        "audit_log": "test_border.py",
        "share_model": "test_operators.py",
        "durability": "test_resume.py",
        "keep_updates": "test_replay.py",
        "initial_model": "test_goal.py",
        "goal": "test_goal.py",
        "max_run_time": "test_goal.py",
    }
    assert {field.name for field in fields(ServerConfig)} == here | elsewhere.keys()
    limits = {
        "max_examples": "test_bad_updates.py",
        "max_model_bytes": "test_first_model.py",
        "max_tensors": "test_first_model.py",
        "upload_memory": "here",
        "resume_memory": "test_resumed_transfers.py",
        "streams_per_client": "test_quotas.py",
        "registrations_per_minute": "test_flapping.py",
        "beats_per_second": "test_quotas.py",
        "refusals_per_minute": "test_quotas.py",
        "stall_timeout": "test_resumed_transfers.py",
        "least_rate": "test_quotas.py",
    }
    assert {field.name for field in fields(Limits)} == limits.keys()
