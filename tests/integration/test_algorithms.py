"""What is known of the algorithms by mathematics: fixed points, first steps, and what they become in special cases."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedcore import (
    Client,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedNova,
    FedOpt,
    FedProx,
    FedYogi,
    Grpc,
    Memory,
    QFedAvg,
    Scaffold,
    ServerConfig,
    Training,
    digest,
)
from fedcore.testing import run_federation

DIM = 3


class Point(nn.Module):
    def __init__(self, dim=1):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dim, dtype=torch.float64))


class Quadratic(Client):
    """Lowers ``1/2 (x - e)' A (x - e)`` in so many plain steps."""

    def __init__(self, e, steps, lr, a=None, num_examples=1):
        self.e = torch.as_tensor(e, dtype=torch.float64).reshape(-1)
        self.a = torch.eye(len(self.e), dtype=torch.float64) if a is None else torch.as_tensor(a)
        self.steps, self.lr, self.num_examples, self.model = steps, lr, num_examples, Point(len(self.e))

    def get_parameters(self):
        return self.model.state_dict()

    def loss(self):
        off = self.model.x - self.e
        return 0.5 * off @ self.a @ off

    def fit(self, parameters, config):
        training = Training(self.model, parameters, config, self.memory)
        if training.wants_anchor or training.wants_loss:
            training.anchor(self.loss(), 1)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.loss().backward()
            training.step(optimizer)
        return training.result(self.num_examples)


def start(dim=1):
    return {"x": torch.zeros(dim, dtype=torch.float64)}


def run(strategy, clients, rounds, transport=None):
    strategy.clients_per_round = strategy.min_fit_clients = len(clients)
    _, final = run_federation(
        clients, strategy=strategy, config=ServerConfig(num_rounds=rounds), transport=transport or Memory(), at_once=1
    )
    return final["x"]


def two(lr):
    return [Quadratic(0.0, 1, lr), Quadratic(1.0, 10, lr)]


@pytest.mark.parametrize(
    ("strategy", "lr", "rounds", "wanted"),
    [
        (FedAvg, 0.1, 60, 0.866901), (FedAvg, 0.01, 400, 0.905319),
        (FedNova, 0.1, 60, 0.394424), (FedNova, 0.01, 400, 0.488799),
        (lambda model: FedProx(model, mu=1.0), 0.1, 60, 0.816955), (lambda model: FedProx(model, mu=1.0), 0.01, 400, 0.901442),
    ],
    ids=["fedavg-0.1", "fedavg-0.01", "fednova-0.1", "fednova-0.01", "fedprox-0.1", "fedprox-0.01"],
)  # fmt: skip
def test_fixed_points(strategy, lr, rounds, wanted):
    assert abs(run(strategy(start()), two(lr), rounds).item() - wanted) < 6e-7


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_finds_the_optimum(option):
    assert abs(run(Scaffold(start(), num_clients=2, option=option), two(0.1), 200).item() - 0.5) < 1e-6


def test_feddyn_finds_the_optimum():
    clients = [Quadratic(0.0, 60, 0.1), Quadratic(1.0, 60, 0.1)]
    assert abs(run(FedDyn(start(), alpha=0.3, num_clients=2), clients, 80).item() - 0.5) < 1e-6


@pytest.mark.parametrize("transport", [Memory(), Grpc()], ids=["memory", "grpc"])
def test_one_full_batch_step_is_gradient_descent(transport):
    clients, x = quadratics(1), torch.zeros(DIM, dtype=torch.float64)
    found = run(FedAvg(start(DIM)), clients, 10, transport)
    whole = sum(client.num_examples for client in clients)
    for _ in range(10):
        x = x - 0.05 * sum(c.num_examples / whole * (c.a @ (x - c.e)) for c in clients)
    assert torch.allclose(found, x, rtol=1e-13, atol=1e-14)


def quadratics(steps, lr=0.05):
    """Return three clients with different curvatures, aims and numbers of examples."""
    draw = np.random.default_rng(5)
    made = []
    for number in range(3):
        root = draw.normal(size=(DIM, DIM))
        made.append(Quadratic(draw.normal(size=DIM), steps, lr, root @ root.T / DIM + np.eye(DIM), 5 + 3 * number))
    return made


# --- independent implementations ---


def descend(client, x, steps, correction):
    a, e = client.a.numpy(), client.e.numpy()
    for _ in range(steps):
        x = x - client.lr * (a @ (x - e) + correction(x))
    return x


def test_feddyn_as_in_the_paper():
    clients, alpha = quadratics(7), 0.2
    w, h, kept = np.zeros(DIM), np.zeros(DIM), [np.zeros(DIM)] * 3
    for _ in range(6):
        made = [
            descend(client, w, 7, lambda x, mine=mine, w=w: -mine + alpha * (x - w))
            for client, mine in zip(clients, kept, strict=True)
        ]
        kept = [mine - alpha * (x - w) for mine, x in zip(kept, made, strict=True)]
        h = h - alpha / 4 * sum(x - w for x in made)
        w = np.mean(made, axis=0) - h / alpha
    found = run(FedDyn(start(DIM), alpha=alpha, num_clients=4), clients, 6)
    np.testing.assert_allclose(found.numpy(), w, rtol=1e-9)


@pytest.mark.parametrize("q", [0.0, 1.0, 2.5])
def test_q_fedavg_as_in_the_paper(q):
    clients, lipschitz = quadratics(4), 1 / 0.05
    w = np.zeros(DIM)
    for _ in range(5):
        deltas, bounds = [], []
        for client in clients:
            off = w - client.e.numpy()
            loss = 0.5 * off @ client.a.numpy() @ off
            step = lipschitz * (w - descend(client, w, 4, lambda x: 0.0))
            deltas.append(loss**q * step)
            bounds.append(q * loss ** (q - 1) * step @ step + lipschitz * loss**q)
        w = w - sum(deltas) / sum(bounds)
    found = run(QFedAvg(start(DIM), q=q, client_lr=0.05), clients, 5)
    np.testing.assert_allclose(found.numpy(), w, rtol=1e-7)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_as_in_the_paper(option):
    clients, n = quadratics(6), 5
    x, c, kept = np.zeros(DIM), np.zeros(DIM), [np.zeros(DIM)] * 3
    weights = [client.num_examples for client in clients]
    for _ in range(5):
        made = [descend(cl, x, 6, lambda _, mine=mine, c=c: c - mine) for cl, mine in zip(clients, kept, strict=True)]
        if option == 1:
            after = [cl.a.numpy() @ (x - cl.e.numpy()) for cl in clients]
        else:
            after = [mine - c + (x - y) / (6 * cl.lr) for cl, mine, y in zip(clients, kept, made, strict=True)]
        c = c + sum(new - old for new, old in zip(after, kept, strict=True)) / n
        x, kept = x + 0.7 * (np.average(made, axis=0, weights=weights) - x), after
    found = run(Scaffold(start(DIM), num_clients=n, option=option, server_lr=0.7), clients, 5)
    np.testing.assert_allclose(found.numpy(), x, rtol=1e-8)


# --- first steps ---


@pytest.mark.parametrize("change", [1e-3, -0.5, 40.0])
@pytest.mark.parametrize("tau", [1e-8, 0.1])
@pytest.mark.parametrize(
    ("strategy", "squares"), [(FedAdam, 0.001), (FedYogi, 0.001), (FedAdagrad, 1.0)], ids=["adam", "yogi", "adagrad"]
)
def test_the_first_step_of_adaptive_servers(strategy, squares, change, tau):
    more = {} if strategy is FedAdagrad else {"beta2": 0.999}
    moved = {"x": torch.tensor([change], dtype=torch.float64)}
    made = strategy(server_lr=0.3, beta1=0.9, tau=tau, **more).step(1, start(), moved)
    wanted = 0.3 * 0.1 * change / (math.sqrt(squares) * abs(change) + tau)
    assert made["x"].item() == pytest.approx(wanted, rel=1e-12)


def moves(strategy, rounds=4):
    """Return the models of a strategy whose clients always come to the same few, not of its own making."""
    model = {"w": torch.zeros(2), "n": torch.tensor(0)}
    found = []
    for number in range(1, rounds + 1):
        mean = {"w": model["w"] + torch.tensor([1.0, -0.25 * number]), "n": torch.tensor(number)}
        model = strategy.step(number, model, mean)
        found.append([*model["w"].tolist(), model["n"].item()])
    return found


def test_what_they_are_in_special_cases():
    plain = moves(FedAvg())
    assert moves(FedAvgM(momentum=0.0)) == plain
    assert moves(FedOpt(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))) == plain
    momentum = moves(FedOpt(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9)))
    np.testing.assert_allclose(moves(FedAvgM(server_lr=0.5, momentum=0.9)), momentum, rtol=1e-6)
    np.testing.assert_allclose(
        moves(FedAdagrad(server_lr=0.5, tau=1e-3)),
        moves(FedOpt(optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.5, eps=1e-3))), rtol=1e-6,
    )  # fmt: skip


def test_over_both_transports_to_the_same_bits():
    for make in (
        lambda: Scaffold(start(DIM), num_clients=3), lambda: FedNova(start(DIM)), lambda: FedDyn(start(DIM), num_clients=3),
        lambda: FedAdam(start(DIM)), lambda: QFedAvg(start(DIM), client_lr=0.05),
    ):  # fmt: skip
        assert digest({"x": run(make(), quadratics(3), 3)}) == digest({"x": run(make(), quadratics(3), 3, Grpc())})
