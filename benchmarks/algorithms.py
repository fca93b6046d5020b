"""Every strategy on the same two problems: accuracy against rounds, and against bytes.

benchmarks/algorithms.py [--quick] [--only STRATEGY] [--pictures FOLDER]

digits: scikit-learn's handwritten digits, ten clients, shares drawn from Dirichlet(0.1), a perceptron with 2,410 parameters.
synthetic: FedProx's synthetic(1, 1), thirty devices of which ten train in a round, logistic regression with 610 parameters.
A round is as many updates as ten clients send, at an asynchronous pace, too. Each strategy has one setting, below, chosen by
hand: the figures say what kind of behaviour to expect, not which strategy is best. All clients are honest.

One line of JSON a problem: for each strategy the accuracy on the test set after the last round, the best one, the megabytes of
all bodies in both directions, and both until 90 % of FedAvg's last accuracy was reached; null if it was not.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

import fedcore
from fedcore.data.digits import load_digits
from fedcore.data.partition import dirichlet
from fedcore.data.synthetic import CLASSES, FEATURES, Examples, synthetic
from fedcore.testing import run_federation

FAMILIES = {
    "at the server": ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedOpt (RMSprop)", "FedBuff", "FedAsync"],
    "at the clients": ["FedAvg", "FedProx", "Scaffold", "FedNova", "FedDyn", "QFedAvg", "DeComFL"],
    "robust": [
        "FedAvg", "Median", "TrimmedMean", "Krum", "MultiKrum", "Bulyan", "GeoMedian", "NormBounding", "CenteredClipping",
        "FLTrust",
    ],
}  # fmt: skip


class Problem(NamedTuple):
    """Data, a model, and how it is trained."""

    name: str
    title: str
    clients: list
    test: Examples
    model: nn.Module
    per_round: int
    rounds: int
    lr: float
    batch: int
    epochs: int


def digits():
    """Return the digits on ten clients."""
    train, test = load_digits()
    flat = [Examples(each.images.flatten(1), each.labels) for each in (train, test)]
    parts = dirichlet(flat[0].labels, 10, 0.1, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    shares = [Examples(flat[0].inputs[part], flat[0].labels[part]) for part in parts]
    title = "Digits, ten clients, Dirichlet(0.1)"
    return Problem("digits", title, shares, flat[1], model, per_round=10, rounds=60, lr=0.1, batch=32, epochs=2)


def devices():
    """Return FedProx's synthetic(1, 1); the test is on the test data of all devices."""
    made = synthetic(1.0, 1.0, devices=30, seed=0)
    test = Examples(*(torch.cat([each[1][column] for each in made]) for column in (0, 1)))
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, CLASSES)
    shares, title = [each[0] for each in made], "synthetic(1, 1), thirty devices, ten a round"
    return Problem("synthetic", title, shares, test, model, per_round=10, rounds=60, lr=0.01, batch=10, epochs=1)


def loss_of(model, data):
    """Return the mean loss of a model on some examples."""
    return functional.cross_entropy(model(data.inputs), data.labels)


class Trains(fedcore.Client):
    """The loop of docs/algorithms.md."""

    def __init__(self, problem, data):
        self.problem, self.data, self.model = problem, data, copy.deepcopy(problem.model)

    def get_parameters(self):
        """Return the model."""
        return self.model.state_dict()

    def fit(self, parameters, config):
        """Train on batches in an order that the round's seed gives."""
        training = fedcore.Training(self.model, parameters, config, self.memory)
        if training.wants_loss:
            training.anchor(self.loss(self.data), len(self.data.labels))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.problem.lr)
        draw = torch.Generator().manual_seed(config["seed"])
        orders = (torch.randperm(len(self.data.labels), generator=draw) for _ in range(self.problem.epochs))
        for batch in training.batches([batch for order in orders for batch in order.split(self.problem.batch)]):
            optimizer.zero_grad()
            self.loss(Examples(self.data.inputs[batch], self.data.labels[batch])).backward()
            training.step(optimizer)
        return training.result(len(self.data.labels))

    def loss(self, data):
        """Return the loss of the model as it is now."""
        return loss_of(self.model, data)


class Measures(fedcore.DeComFLClient):
    """The same without gradients."""

    def __init__(self, problem, data):
        super().__init__(copy.deepcopy(problem.model), len(data.labels))
        self.data = data

    def batch(self, step, config):
        """Return everything."""
        return self.data

    def loss(self, data):
        """Return the loss of the model as it is now."""
        return loss_of(self.model, data)


def strategies(problem):
    """Return what makes each strategy, given what all share."""
    clients, start, few = len(problem.clients), problem.model.state_dict(), {"f": 2}
    everything = Examples(*map(torch.cat, zip(*problem.clients, strict=True)))
    few_of_all = torch.randperm(len(everything.labels), generator=torch.Generator().manual_seed(0))[:100]
    root = Trains(problem, Examples(*(column[few_of_all] for column in everything)))
    everybody = {"clients_per_round": problem.per_round, "min_fit_clients": problem.per_round}

    def rooted(server_round, parameters):
        return root.fit(parameters, {"seed": server_round})[0]

    made = {
        "FedAvg": {},
        "FedAvgM": {"momentum": 0.7},
        "FedAdam": {"server_lr": 0.03, "tau": 0.001},
        "FedYogi": {"server_lr": 0.03, "tau": 0.001},
        "FedAdagrad": {"server_lr": 0.1, "tau": 0.001},
        "FedOpt (RMSprop)": {"optimizer": lambda tensors: torch.optim.RMSprop(tensors, lr=0.01)},
        "FedBuff": {"buffer_size": problem.per_round, "concurrency": problem.per_round},
        "FedAsync": {"concurrency": problem.per_round},
        "FedProx": {"mu": 0.1},
        "Scaffold": {"num_clients": clients},
        "FedNova": {},
        "FedDyn": {"num_clients": clients, "alpha": 0.1},
        "QFedAvg": {"q": 0.2, "client_lr": problem.lr},
        "DeComFL": {"lr": problem.lr, "steps": 2, "perturbations": 20},
        "Median": few,
        "TrimmedMean": few,
        "Krum": few,
        "MultiKrum": few,
        "Bulyan": {"f": 1},
        "GeoMedian": few,
        "NormBounding": {},
        "CenteredClipping": {"tau": 1.0, "iterations": 3},
        "FLTrust": {"root_update": rooted},
    }
    alone = {"FedBuff", "FedAsync"}  # these say themselves what a round is
    return {
        name: lambda evaluate, name=name: getattr(fedcore, name.split(" ")[0])(
            start, evaluate, **({} if name in alone else everybody), **made[name]
        )
        for name in made
    }


def curve(problem, name, make, rounds):
    """Return after each round, of ten updates: (accuracy, megabytes so far)."""
    model = copy.deepcopy(problem.model)

    def evaluate(server_round, parameters):
        model.load_state_dict(parameters)
        with torch.inference_mode():
            logits = model(problem.test.inputs)
        right = (logits.argmax(dim=1) == problem.test.labels).double().mean().item()
        return functional.cross_entropy(logits, problem.test.labels).item(), {"accuracy": right}

    kind = Measures if name == "DeComFL" else Trains
    clients = [kind(problem, data) for data in problem.clients]
    every = problem.per_round if name == "FedAsync" else 1
    config = fedcore.ServerConfig(num_rounds=rounds * every, start_clients=len(clients))
    history, _ = run_federation(clients, strategy=make(evaluate), config=config, at_once=1, timeout=1800.0)
    sent, found = 0, []
    for record in history.rounds:
        sent += record.bytes_sent + record.bytes_received
        found.append((record.metrics["accuracy"], sent / 1e6))
    return found[every - 1 :: every]


def summary(curves):
    """Return the figures of a problem."""
    goal, made = 0.9 * curves["FedAvg"][-1][0], {}
    for name, found in curves.items():
        at = next((index for index, (accuracy, _) in enumerate(found) if accuracy >= goal), None)
        made[name] = {
            "last": round(found[-1][0], 4), "best": round(max(found)[0], 4), "megabytes": round(found[-1][1], 3),
            "rounds_to_goal": None, "megabytes_to_goal": None,
        }  # fmt: skip
        if at is not None:
            made[name].update(rounds_to_goal=at + 1, megabytes_to_goal=round(found[at][1], 3))
    return {"goal": round(goal, 4), "strategies": made}


def draw(problem, curves, path):
    """Draw accuracy against rounds and bytes, a row for each family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9.6), layout="constrained")
    panels = figure.subplots(len(FAMILIES), 2, sharey=True)
    for (family, names), (left, right) in zip(FAMILIES.items(), panels, strict=True):
        for index, name in enumerate(names):
            accuracy, megabytes = zip(*curves[name], strict=True)
            style = {"label": name, "linewidth": 1.3, "linestyle": "--" if index % 2 else "-"}
            if name == "FedAvg":
                style.update(color="black", linewidth=2)
            left.plot(range(1, len(accuracy) + 1), accuracy, **style)
            right.plot(megabytes, accuracy, **style)
        left.set(ylabel="accuracy", title=family, xlabel="rounds")
        right.set(xscale="log", xlabel="megabytes, all clients, both directions")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(problem.title)
    figure.savefig(path, dpi=110)


def main():
    """Measure, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, to see whether everything works")
    parser.add_argument("--only", help="a strategy, beside FedAvg")
    parser.add_argument("--pictures", metavar="FOLDER", help="where algorithms-digits.png and algorithms-synthetic.png go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for problem in (digits(), devices()):
        began, rounds, curves = time.monotonic(), 3 if given.quick else problem.rounds, {}
        for name, make in strategies(problem).items():
            if given.only in (None, name) or name == "FedAvg":
                curves[name] = curve(problem, name, make, rounds)
                print(f"{problem.name} {name}: {curves[name][-1][0]:.3f}, {time.monotonic() - began:.0f} s", file=sys.stderr)
        if given.pictures and not given.only:
            draw(problem, curves, Path(given.pictures) / f"algorithms-{problem.name}.png")
        line = {"benchmark": "algorithms", "problem": problem.name, "rounds": rounds, **summary(curves)}
        print(json.dumps({**line, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
