"""DeComFL: everybody has the same bits, a round costs the same whatever the model's size, and models do learn."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedcore import (
    Clip,
    ConfigError,
    DeComFL,
    DeComFLClient,
    Exchange,
    Gaussian,
    Grpc,
    Memory,
    ProtocolError,
    RoundPolicy,
    ServerConfig,
    SitePolicy,
    digest,
    start_client,
)
from fedcore.data.digits import load_digits
from fedcore.directions import draw
from fedcore.errors import SiteRefused
from fedcore.filter import incoming
from fedcore.messages import Kind
from fedcore.parameters import copy_parameters
from fedcore.selection import Selection
from fedcore.testing import check_strategy, run_federation
from fedcore.trail import DIGEST, LENGTHS, ROUNDS, SLOPES, Trail


class Vector(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.x, self.y = nn.Parameter(torch.zeros(size - 3)), nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.tensor(7))


class Pulls(DeComFLClient):
    """Lowers the distance to a point of its own, and notes what it was sent and what it made of that."""

    def __init__(self, aim, size=40, num_examples=1):
        super().__init__(Vector(size), num_examples)
        self.aim, self.sent, self.had, self.whole = aim, {}, {}, 0

    def batch(self, step, config):
        if step == 0:
            self.had[config["round"]] = digest(self.model.state_dict())
        return self.aim + 0.01 * step

    def loss(self, batch):
        return sum((each - batch).square().mean() for each in self.model.parameters())

    def catch_up(self, parameters, config):
        self.sent[config["round"]] = sorted(parameters)
        self.whole += "x" in parameters
        super().catch_up(parameters, config)


class Measures(Pulls):
    def evaluate(self, parameters, config):
        self.catch_up(parameters, config)
        return self.loss(self.aim).item(), 1, {"first": self.model.x[0].item()}


class Without(Selection):
    """Invites client-2 first of all, except from round 20 to 29."""

    def order(self, server_round, available, wanted, rng):
        names = sorted(available, reverse=True)
        return names[1:] if 20 <= server_round < 30 else names


def model(size=40):
    return Vector(size).state_dict()


def strategy(start, **more):
    return DeComFL(start, **{"lr": 0.5, "steps": 2, "perturbations": 3, "clients_per_round": 2, "min_fit_clients": 2, **more})


def run(made, clients, rounds, transport=None, **more):
    return run_federation(
        clients, strategy=made, config=ServerConfig(num_rounds=rounds), transport=transport or Memory(), at_once=1, **more
    )


def up_to_date(made, client, final, number):
    """Bring a client to the final model as a task would, and return the digest of what it has."""
    down = made.download(Kind.EVALUATE, number, "client", final, client.holds)
    client.catch_up(copy_parameters(down), {**made.configure_evaluate(number, "client"), "round": number + 1})
    return digest(client.model.state_dict())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("transport", [Memory(), Grpc()], ids=["memory", "grpc"])
def test_the_same_bits_everywhere_after_fifty_rounds_of_which_one_missed_ten(kind, transport):
    clients = [Pulls(torch.tensor(float(number)), num_examples=1 + number) for number in range(3)]
    made = strategy(model(), directions=kind, selection=Without())
    history, final = run(made, clients, 50, transport)
    begun = {1: digest(model()), **{record.number + 1: record.digest for record in history.rounds}}
    for client in clients:
        assert client.had.items() <= begun.items()
        assert [DIGEST in sent for sent in client.sent.values()] == [False] + [True] * (len(client.sent) - 1)
        assert digest(client.model.state_dict()) == client.holds  # back at the round's model
        assert up_to_date(made, client, final, 50) == digest(final) == begun[51]
    assert {19, 30, 50} <= clients[2].sent.keys()
    assert not clients[2].sent.keys() & set(range(20, 30))
    assert len(set(begun.values())) == 51
    assert final["count"] == 7


def test_the_formula():
    """Two clients, two steps, three directions, by hand."""
    clients, start = [Pulls(torch.tensor(1.0), num_examples=1), Pulls(torch.tensor(3.0), num_examples=3)], model()
    made = strategy(start, mu=0.01, seed=9, weighting="examples")
    _, final = run(made, clients, 1)
    x, seeds = torch.zeros(40, dtype=torch.float64), made.trail.seeds(1)

    def loss(x, aim):
        return (x[:37] - aim).square().mean() + (x[37:] - aim).square().mean()

    mean = torch.zeros(2, 3, dtype=torch.float64)
    for aim, weight in ((1.0, 0.25), (3.0, 0.75)):
        local = x.clone()
        for step, row in enumerate(seeds):
            directions = [draw("rademacher", seed, 0, 40).double() for seed in row]
            slopes = [(loss(local + 0.01 * z, aim + 0.01 * step) - loss(local, aim + 0.01 * step)) / 0.01 for z in directions]
            local -= 0.5 / 3 * sum(g * z for g, z in zip(slopes, directions, strict=True))
            mean[step] += weight * torch.stack(slopes)
    for row, slopes in zip(seeds, mean, strict=True):
        x -= 0.5 / 3 * sum(g * draw("rademacher", seed, 0, 40).double() for g, seed in zip(slopes, row, strict=True))
    found = torch.cat([final["x"], final["y"]]).double()
    assert torch.allclose(found, x, atol=2e-3)  # losses are in float32: slopes are 1e-7 / mu off


def sizes(number):
    """Return the bytes that each client and round took, of a model with so many parameters."""
    clients = [Pulls(torch.tensor(1.0), number), Pulls(torch.tensor(2.0), number)]
    history, _ = run(strategy(model(number), steps=1, perturbations=2), clients, 4)
    return [sorted((each.bytes_sent, each.bytes_received) for each in r.traffic.values()) for r in history.rounds]


@pytest.mark.parametrize(
    "number", [1_000_000, pytest.param(100_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["1M", "100M"]
)
def test_a_round_costs_the_same_whatever_the_size(number):
    small, large = sizes(10_000), sizes(number)
    assert small[1:] == large[1:] == [small[1]] * 3
    assert small[1][0] == small[1][1]
    assert sum(small[1][0]) < 1000
    assert large[0][0][0] > 4 * number  # the first download is the model
    assert small[0][0][1] == small[1][0][1]


def test_evaluations_go_by_the_rounds_too():
    clients = [Measures(torch.tensor(1.0)), Measures(torch.tensor(2.0)), Pulls(torch.tensor(0.0))]
    history, final = run(strategy(model(), clients_per_round=3), clients, 5)
    assert history.latest["evaluate/first"] == pytest.approx(float(final["x"][0]))
    assert [client.whole for client in clients] == [1, 1, 1]
    assert all(client.sent[5] == [DIGEST, LENGTHS, ROUNDS] for client in clients)


def test_the_first_model_may_be_a_client_s():
    clients = [Pulls(torch.tensor(1.0)), Pulls(torch.tensor(1.0))]
    _, final = run(strategy(None, lr=0.9), clients, 20)
    assert (final["x"] - 1).square().mean() < 0.5


def test_digits_are_learned():
    train, test = load_digits()
    torch.manual_seed(0)
    start = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).state_dict()

    class Reads(DeComFLClient):
        def __init__(self, share):
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), len(share.labels))
            self.share = share

        def batch(self, step, config):
            return self.share

        def loss(self, share):
            return functional.cross_entropy(self.model(share.images), share.labels)

    shares = [train.take(torch.arange(part, len(train.labels), 2)) for part in range(2)]
    made = DeComFL(start, lr=0.15, steps=2, perturbations=10, min_fit_clients=2)
    _, final = run(made, [Reads(share) for share in shares], 40)
    reader = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    reader.load_state_dict(final)
    accuracy = (reader(test.images).argmax(dim=1) == test.labels).double().mean().item()
    assert accuracy > 0.6


# --- what is remembered ---


def test_every_round_and_step_has_directions_of_its_own():
    trail = strategy(model()).trail
    drawn = [seed for number in range(1, 10) for row in trail.seeds(number) for seed in row]
    assert len(set(drawn)) == len(drawn) == 9 * 2 * 3
    assert Trail.told(trail.config()) == trail


def remembering(**more):
    """Return a strategy after four rounds, the models that they began with and the last one, and their digests."""
    made, models = strategy(model(), **more), [copy_parameters(model())]
    for number in range(1, 5):
        slopes = torch.full((2, 3), float(number), dtype=torch.float64)
        models.append(made.step(number, models[-1], {SLOPES: slopes}))
    return made, models, [digest(each) for each in models]


def rounds_sent(made, last, holds):
    down = made.download(Kind.FIT, 5, "client-0", last, holds)
    return "all" if down is last else down[ROUNDS].tolist()


def test_who_holds_what_is_sent_what_is_missing():
    made, models, names = remembering(history=3)
    assert [rounds_sent(made, models[-1], name) for name in names] == ["all", [2, 3, 4], [3, 4], [4], []]
    assert rounds_sent(made, models[-1], "") == rounds_sent(made, models[-1], "no digest at all") == "all"
    down = [made.download(Kind.FIT, 5, name, models[-1], names[2]) for name in ("a", "b")]
    assert down[0] is down[1]  # described and encoded once
    assert remembering(history=0)[0].state_dict()["digests"] == []


def test_state_survives_and_other_directions_begin_anew():
    made, models, names = remembering()
    again = strategy(model(), lr=0.1)  # what is sent are lengths, which another lr does not change
    again.load_state_dict(made.state_dict())
    assert rounds_sent(again, models[-1], names[1]) == [2, 3, 4]
    for other in ({"seed": 1}, {"directions": "gaussian"}, {"steps": 1}, {"trained": ["x"]}):
        changed = strategy(model(), **other)
        changed.load_state_dict(made.state_dict())
        assert rounds_sent(changed, models[-1], names[1]) == "all"


def test_a_client_that_computes_otherwise_is_told():
    made, models, names = remembering()
    client = Pulls(torch.tensor(0.0))
    client.catch_up(copy_parameters(models[2]), {"round": 3})
    assert client.holds == names[2]
    client._kept["x"][5] += 1e-3
    down = made.download(Kind.FIT, 5, "client", models[-1], client.holds)
    with pytest.raises(ProtocolError, match=r"rounds \[3, 4\] is [0-9a-f]{64}, the server's is " + names[-1]):
        client.catch_up(dict(down), {**made.configure_fit(5, "client"), "round": 5})
    assert client.holds == ""
    assert up_to_date(made, client, models[-1], 5) == names[-1]


def test_a_server_that_goes_on_from_its_state(tmp_path):
    """The second half of a run, with a new server and the same clients, is sent no model, and ends with the same bits."""

    def clients():
        return [Pulls(torch.tensor(1.0)), Pulls(torch.tensor(2.0))]

    undisturbed, whole = run(strategy(model()), clients(), 6)
    made, same = strategy(model()), clients()
    _, half = run(made, same, 3)
    later = strategy(half)
    later.load_state_dict(made.state_dict())
    assert all(up_to_date(later, client, half, 3) == digest(half) for client in same)
    assert all(DIGEST in client.sent[4] for client in same)
    assert undisturbed.rounds[2].digest == digest(half)
    assert undisturbed.rounds[-1].digest == digest(whole)


class Wide(DeComFLClient):
    """Pulls the model of serving.py to a point of its own."""

    def __init__(self, number):
        self.whole = 0
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(20_000))
        module.register_buffer("n", torch.tensor(0))
        super().__init__(module, 1 + number)

    def batch(self, step, config):
        return float(self.num_examples)

    def loss(self, batch):
        return (self.model.w - batch).square().mean()

    def catch_up(self, parameters, config):
        self.whole += "w" in parameters
        super().catch_up(parameters, config)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_server_that_is_killed(tmp_path):
    """Its rounds are remembered with its models: no client is sent a second model, and the bits are those of no disturbance."""
    outcomes = []
    for folder, plans in (("undisturbed", []), ("killed", ["commit.before=kill@2", "ckpt.before_rename=kill@2"])):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        clients, codes = [Wide(number) for number in range(3)], []
        with ThreadPoolExecutor(3) as pool:
            ended = [pool.submit(start_client, address, each, f"client-{each.num_examples}", patience=60) for each in clients]
            for plan in (*plans, ""):
                settings = json.dumps({"num_rounds": 6, "strategy": ["decomfl", {"lr": 0.1, "perturbations": 2}]})
                command = [sys.executable, Path(__file__).parent / "serving.py", tmp_path / folder, address, settings]
                environment = {**os.environ, "FEDCORE_FAILPOINTS": plan, "OMP_NUM_THREADS": "1"}
                server = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
                codes.append(server.returncode)
            for each in ended:
                each.result(30)
        assert codes == [-signal.SIGKILL] * len(plans) + [0], server.stderr
        assert [client.whole for client in clients] == [1, 1, 1]
        outcomes.append(server.stdout.splitlines()[-1])
    assert outcomes[0] == outcomes[1]


# --- what is refused ---


def test_buffers_are_not_trained():
    class Normal(Pulls):
        def __init__(self):
            super().__init__(torch.tensor(1.0))
            self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    start = Normal().model.state_dict()
    trail = strategy(start, trained=["*.weight", "*.bias"]).trail
    assert trail.names(start) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(ConfigError, match=r"'1.running_mean' would be trained, but is no parameter"):
        run(strategy(start), [Normal(), Normal()], 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lr": 0}, "lr"), ({"mu": -1.0}, "mu"), ({"steps": 0}, "steps"), ({"perturbations": 0}, "perturbations"),
        ({"history": -1}, "history"), ({"seed": 1 << 63}, "seed"), ({"directions": "uniform"}, "directions"),
        ({"trained": "*"}, "trained"), ({"exchange": Exchange(exclude=["y"])}, "exchange"),
    ],
)  # fmt: skip
def test_arguments_make_sense(wrong, named):
    with pytest.raises(ConfigError, match=named):
        strategy(model(), **wrong)


def test_a_task_of_another_strategy_is_none_of_decomfl():
    with pytest.raises(ProtocolError, match="strategy=DeComFL"):
        Trail.told({"round": 1})


def test_what_is_for_changes_of_the_model_finds_none():
    clients = [Pulls(torch.tensor(1.0)), Pulls(torch.tensor(2.0))]
    with pytest.raises(ConfigError, match="none of them travels: leave out filters="):
        run(strategy(model()), clients, 1, filters=[Clip(1.0)])
    with pytest.raises(SiteRefused, match=f"tensor '{SLOPES}' is none of the model's"):
        run(strategy(model()), clients, 1, site=SitePolicy(clip=1.0))


def test_a_filter_of_the_server_finds_nothing_either():
    with pytest.raises(ConfigError, match="none of them travels: leave out filters="):
        incoming([Gaussian(1.0)], {SLOPES: torch.zeros(2, 3)}, model(), difference=False, seed=0, number=1, updates=2)


def test_updates_belong_to_their_own_round():
    policy = RoundPolicy(target=2, late="carry")
    with pytest.raises(ConfigError, match="'drop'"):
        ServerConfig(policy=policy).policy_for(strategy(model()))
    with pytest.raises(ConfigError, match="async"):
        ServerConfig(policy=RoundPolicy(target=2, pace="async")).policy_for(strategy(model()))


def test_conformance():
    check_strategy(lambda start: strategy(start, lr=0.01))
