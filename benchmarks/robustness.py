"""What is left of a federation's accuracy when a fifth of its clients attack.

benchmarks/robustness.py [--quick] [--data gaussian | digits] [--model logistic | perceptron] [--picture FILE]

Logistic regression, or a perceptron with one hidden layer, on ten Gaussian clouds or on scikit-learn's digits; 20 clients,
30 rounds on the memory transport; with an attack 4 of the clients are Byzantine and know what all honest ones do. One line of
JSON for each data set and model: for each split and attack the accuracy with each strategy, in percent; and by how many points
each is below FedAvg without an attack, in alike data, in Dirichlet(0.5), and in Dirichlet(1) when four turn their updates round
and send ten times as much. All attacks are tried on digits with logistic regression, of which ``--picture`` draws the table.
"""

import argparse
import json
import sys
import time
from itertools import product

import numpy as np
import torch
from attacks import alie, alie_z, ipm
from torch.nn import functional

import fedcore
from fedcore.data.digits import Digits, load_digits
from fedcore.data.partition import dirichlet
from fedcore.testing import run_federation

CLIENTS, BYZANTINE, ROUNDS, STEPS, HIDDEN = 20, 4, 30, 10, 32
LOGISTIC_RATE, PERCEPTRON_RATE = 2.0, 0.5  # learnt with these, FedAvg is at its best without an attack
SIZES = {"f": BYZANTINE, "clients_per_round": CLIENTS, "min_fit_clients": CLIENTS}


def logistic():
    """Return the model that rounds begin with."""
    return {"weight": torch.zeros(10, 64), "bias": torch.zeros(10)}


def perceptron():
    """Return the model that rounds begin with."""
    draw = torch.Generator().manual_seed(0)
    inner, outer = torch.randn(HIDDEN, 64, generator=draw) / 8, torch.randn(10, HIDDEN, generator=draw) / HIDDEN**0.5
    return {"inner.weight": inner, "inner.bias": torch.zeros(HIDDEN), "weight": outer, "bias": torch.zeros(10)}


def logits_of(model, x):
    """Return what a model makes of pictures, and of what its last layer makes that."""
    seen = torch.relu(x @ model["inner.weight"].T + model["inner.bias"]) if "inner.weight" in model else x
    return seen @ model["weight"].T + model["bias"], seen


def trained(parameters, data, labels=None):
    """Return the model after some full-batch steps."""
    model, x = {name: value.clone() for name, value in parameters.items()}, data.images.flatten(1)
    target = functional.one_hot(data.labels if labels is None else labels, 10).float()
    rate = PERCEPTRON_RATE if "inner.weight" in model else LOGISTIC_RATE
    for _ in range(STEPS):
        logits, seen = logits_of(model, x)
        error = rate * (torch.softmax(logits, dim=1) - target) / len(x)
        if "inner.weight" in model:
            back = error @ model["weight"] * (seen > 0)
            model["inner.weight"] -= back.T @ x
            model["inner.bias"] -= back.sum(dim=0)
        model["weight"] -= error.T @ seen
        model["bias"] -= error.sum(dim=0)
    return model


def flat(parameters):
    """Return a model as a row."""
    return torch.cat([value.flatten() for value in parameters.values()]).numpy().astype(np.float64)


def unflat(row, like):
    """Return a row as a model."""
    pieces = torch.tensor(row, dtype=torch.float32).split([value.numel() for value in like.values()])
    return {name: piece.view_as(value) for piece, (name, value) in zip(pieces, like.items(), strict=True)}


class Member(fedcore.Client):
    """An honest client."""

    def __init__(self, data):
        self.data = data

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        return trained(parameters, self.data), len(self.data.labels)


class Honest:
    """What attackers know: the honest clients' data, and what they change."""

    def __init__(self, parts):
        self.parts, self.seen = parts, {}


class Attacker(Member):
    """Sends what an attack makes of what honest clients change, and its own data would."""

    def __init__(self, data, attack, honest, number):
        super().__init__(data)
        self.attack, self.honest, self.number = attack, honest, number

    def changes(self, parameters, number):
        """Return what each honest client changes in a round; attackers share it."""
        if number not in self.honest.seen:
            base = flat(parameters)
            self.honest.seen[number] = np.stack([flat(trained(parameters, data)) - base for data in self.honest.parts])
        return self.honest.seen[number]

    def fit(self, parameters, config):
        base = flat(parameters)
        if self.attack == "label flip":
            return trained(parameters, self.data, 9 - self.data.labels), len(self.data.labels)
        own = flat(trained(parameters, self.data)) - base
        draw = np.random.default_rng([config["round"], self.number])
        if self.attack == "sign flip x10":
            change = -10 * own
        elif self.attack == "gaussian":
            change = draw.normal(size=base.shape) * 10
        elif self.attack == "replacement":
            goal = np.random.default_rng(7).normal(size=base.shape)
            change = (goal - base) * CLIENTS / BYZANTINE
        else:
            others = self.changes(parameters, config["round"])
            kind, _, strength = self.attack.partition(" ")
            change = alie(others, alie_z(CLIENTS, BYZANTINE)) if kind == "alie" else ipm(others, float(strength))
        return unflat(base + change, parameters), len(self.data.labels)


ATTACKS = ["none", "sign flip x10", "label flip", "gaussian", "alie", "ipm 0.1", "ipm 10", "replacement"]


def strategies(start, root):
    """Return what makes each strategy."""

    def rooted(server_round, parameters):
        return trained(parameters, root)

    return {
        "FedAvg": lambda: fedcore.FedAvg(start, clients_per_round=CLIENTS, min_fit_clients=CLIENTS),
        "Median": lambda: fedcore.Median(start, **SIZES),
        "TrimmedMean": lambda: fedcore.TrimmedMean(start, **SIZES),
        "Krum": lambda: fedcore.Krum(start, **SIZES),
        "MultiKrum": lambda: fedcore.MultiKrum(start, **SIZES),
        "Bulyan": lambda: fedcore.Bulyan(start, **SIZES),
        "GeoMedian": lambda: fedcore.GeoMedian(start, **SIZES),
        "NormBounding": lambda: fedcore.NormBounding(start, **SIZES),
        "CenteredClipping": lambda: fedcore.CenteredClipping(start, tau=1.0, iterations=3, **SIZES),
        "FLTrust": lambda: fedcore.FLTrust(start, root_update=rooted, **SIZES),
        "NNM+Median": lambda: fedcore.Median(start, pre="nnm", **SIZES),
        "NNM+TrimmedMean": lambda: fedcore.TrimmedMean(start, pre="nnm", **SIZES),
        "NNM+Krum": lambda: fedcore.Krum(start, pre="nnm", **SIZES),
        "NNM+GeoMedian": lambda: fedcore.GeoMedian(start, pre="nnm", **SIZES),
    }


def accuracy(parameters, test):
    """Return in percent how many pictures are read right."""
    logits, _ = logits_of(parameters, test.images.flatten(1))
    return round(100 * (logits.argmax(dim=1) == test.labels).double().mean().item(), 1)


def gaussian(seed=0):
    """Return ``(train, test)`` of ten classes, each a Gaussian around a centre of its own; 64 features."""
    draw = torch.Generator().manual_seed(seed)
    centres = 0.7 * torch.randn(10, 64, generator=draw)

    def examples(count):
        labels = torch.arange(count) % 10
        return Digits((centres[labels] + torch.randn(count, 64, generator=draw)) / 8, labels)

    return examples(2000), examples(1000)


def split(train, alpha, seed=1):
    """Return each client's share; alpha None: alike."""
    if alpha is None:
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
        return [train.take(part) for part in order.tensor_split(CLIENTS)]
    return [train.take(part) for part in dirichlet(train.labels, CLIENTS, alpha, seed=seed)]


def outcome(make, attack, parts, test, rounds):
    """Return the accuracy that a strategy comes to under an attack."""
    bad = 0 if attack == "none" else BYZANTINE
    honest = Honest(parts[bad:])
    clients = [Attacker(part, attack, honest, number) for number, part in enumerate(parts[:bad])]
    clients += [Member(part) for part in honest.parts]
    _, final = run_federation(clients, strategy=make(), config=fedcore.ServerConfig(num_rounds=rounds), timeout=120.0)
    return accuracy(final, test)


def draw(table, names, path):
    """Draw strategies against attacks."""
    from matplotlib.figure import Figure

    values = np.array([[row[name] for name in names] for row in table.values()])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(table)), list(table))
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9)
    axes.set_title(
        f"Accuracy (%) on digits: {CLIENTS} clients, Dirichlet(1), {BYZANTINE} of them Byzantine but in the first row"
    )
    figure.colorbar(shown)
    figure.savefig(path, dpi=120)


def tables_of(data, model, attacks, rounds):
    """Return accuracies: by split, attack and strategy."""
    tables, (train, test) = {}, gaussian() if data == "gaussian" else load_digits()
    made = strategies(logistic() if model == "logistic" else perceptron(), train.take(torch.arange(100)))
    for name, alpha, tried in (("dirichlet 1", 1.0, attacks), ("iid", None, ["none"]), ("dirichlet 0.5", 0.5, ["none"])):
        parts = split(train, alpha)
        tables[name] = {}
        for attack in tried:
            tables[name][attack] = {key: outcome(make, attack, parts, test, rounds) for key, make in made.items()}
            print(data, model, name, attack, tables[name][attack], file=sys.stderr, flush=True)
    return tables


def lost(tables, split, attack):
    """Return by how many points each strategy is below FedAvg without an attack."""
    plain = tables[split]["none"]["FedAvg"]
    return {name: round(plain - value, 1) for name, value in tables[split][attack].items()}


def main():
    """Measure, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, to see whether everything works")
    parser.add_argument("--data", choices=["gaussian", "digits"], help="one of the two")
    parser.add_argument("--model", choices=["logistic", "perceptron"], help="one of the two")
    parser.add_argument("--picture", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if given.quick else ROUNDS
    for data, model in product(["gaussian", "digits"], ["perceptron", "logistic"]):
        if given.data not in (None, data) or given.model not in (None, model):
            continue
        began, whole = time.monotonic(), (data, model) == ("digits", "logistic")
        tables = tables_of(data, model, ATTACKS if whole else ["none", "sign flip x10"], rounds)
        if given.picture and whole:
            draw(tables["dirichlet 1"], list(tables["iid"]["none"]), given.picture)
        line = {
            "benchmark": "robustness", "data": data, "model": model, "rounds": rounds, "accuracy": tables,
            "lost_alike": lost(tables, "iid", "none"), "lost_dirichlet_0.5": lost(tables, "dirichlet 0.5", "none"),
            "lost_to_sign_flip": lost(tables, "dirichlet 1", "sign flip x10"), "seconds": round(time.monotonic() - began),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
