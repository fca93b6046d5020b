"""The published results of Fed-TCGA-BRCA again: FedAvg, FedProx, FedAdam, FedYogi, FedAdagrad and SCAFFOLD, seed by seed.

benchmarks/tcga.py [--seeds N] [--only STRATEGY] [--markdown]

The environment variable FEDCORE_TCGA_DIR names a folder with brca.csv and train_test_split.csv, both of which lie in FLamby
(github.com/owkin/FLamby, folder flamby/datasets/fed_tcga_brca; Ogier du Terrail et al., NeurIPS 2022): 1088 patients of six
regions, 39 covariates, a linear model, the Cox partial likelihood, 5 rounds of 100 steps on batches of 8, and the concordance
index on the test patients of all regions. Settings and results are the published ones, and so is the order of random numbers
(see ``shuffles``), so that seeds can be compared one by one. Published are seeds 42 to 46; without --seeds these and 20 in all.
One line of JSON; with --markdown a table.
"""

import argparse
import csv
import json
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import fedcore
from fedcore.testing import run_federation

CLIENTS, FEATURES, BATCH, STEPS, ROUNDS = 6, 39, 8, 100, 5
PUBLISHED = {
    "FedAvg": [0.8026, 0.4227, 0.8081, 0.8289, 0.8143],
    "FedProx": [0.7758, 0.4278, 0.7963, 0.8084, 0.7751],
    "FedAdam": [0.8381, 0.8209, 0.8560, 0.8619, 0.8337],
    "FedYogi": [0.8385, 0.8209, 0.8560, 0.8615, 0.8337],
    "FedAdagrad": [0.8311, 0.8370, 0.8242, 0.8322, 0.8443],
    "Scaffold": [0.6971, 0.6579, 0.7513, 0.7092, 0.6821],
}
SEEDS = (42, 43, 44, 45, 46)


class ScaffoldByExamples(fedcore.Scaffold):
    """SCAFFOLD as FLamby has it: control variates are weighed by examples, as the models are."""

    controls_weighting = "examples"


def strategy_of(name, model, evaluate=None):
    """Return a strategy and the clients' learning rate, as published."""
    adaptive = {"beta1": 0.9, "tau": 1e-8}
    made, lr = {
        "FedAvg": lambda **k: (fedcore.FedAvg(model, evaluate, **k), 0.1),
        "FedProx": lambda **k: (fedcore.FedProx(model, evaluate, mu=0.1, **k), 0.1),
        "FedAdam": lambda **k: (fedcore.FedAdam(model, evaluate, server_lr=0.1, beta2=0.999, **adaptive, **k), 0.01),
        "FedYogi": lambda **k: (fedcore.FedYogi(model, evaluate, server_lr=0.1, beta2=0.999, **adaptive, **k), 0.01),
        "FedAdagrad": lambda **k: (fedcore.FedAdagrad(model, evaluate, server_lr=1.0, **adaptive, **k), 0.01),
        "Scaffold": lambda **k: (ScaffoldByExamples(model, evaluate, num_clients=CLIENTS, **k), 0.01),
        "Scaffold, plain": lambda **k: (fedcore.Scaffold(model, evaluate, num_clients=CLIENTS, **k), 0.01),
    }[name](clients_per_round=CLIENTS, min_fit_clients=CLIENTS)
    return made, lr


class Patients(NamedTuple):
    """Covariates, shape (N, 39), and what became of the patients, shape (N, 2): event (1: death), time in days."""

    covariates: torch.Tensor
    outcome: torch.Tensor


def load(folder):
    """Return the training patients of each region, and the test patients of all."""
    split, table = (Path(folder, name).read_text().splitlines() for name in ("train_test_split.csv", "brca.csv"))
    folds = {row["pid"]: row for row in csv.DictReader(split)}
    rows = [row for row in csv.reader(table) if row[0] in folds]  # some patients are in neither part
    numbers = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    whole = Patients(numbers[:, :FEATURES], numbers[:, FEATURES:])

    def where(column, value):
        chosen = torch.tensor([folds[row[0]][column] == value for row in rows])
        return Patients(whole.covariates[chosen], whole.outcome[chosen])

    return [where("fold2", f"train_{region}") for region in range(CLIENTS)], where("fold", "test")


def cox_loss(scores, outcome):
    """Return the negative partial log likelihood of scores, shape (N,), over N.

    It is computed as in the published runs; a numerically better form moves some results by a hundredth.
    """
    order = torch.argsort(-outcome[:, 1], stable=True)
    shifted, events = scores[order] - scores.max(), outcome[order, 0]
    return (events * (shifted.exp().cumsum(0).log() - shifted)).mean()


def concordance(scores, outcome):
    """Return the part of the pairs that scores put in order, of those of which it is known who died first."""
    died, times = outcome[:, 0] > 0, outcome[:, 1]
    later = (times[None] > times[:, None]) | ((times[None] == times[:, None]) & ~died[None])
    comparable = died[:, None] & later
    higher = (scores[:, None] > scores[None]).double() + 0.5 * (scores[:, None] == scores[None]).double()
    return higher[comparable].mean().item()


def draw():
    """Draw a number from torch's global generator as its DataLoader does, once for an iterator and once for a shuffle."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def shuffles(seed, name, sizes):
    """Return for each client the batches of all rounds, drawn in the order of the published runs.

    FLamby ran its strategies one after another in one process, in the order of their names, each seeded, with loaders that draw
    the first shuffle when they are made: before the seed, by what the strategy before has left of the generator. Later shuffles
    are drawn when they are needed, with clients in turn. Before FedAdagrad comes cyclic training, which visits one client a
    round; before all others one that visits all. Then follow seven evaluations.
    """
    epochs = [-(-size // BATCH) for size in sizes]
    again = [-(-STEPS * (1 if name == "FedAdagrad" else ROUNDS) // epoch) - 1 for epoch in epochs]
    if name == "FedAdagrad":
        again[np.random.default_rng(seed).permutation(CLIENTS)[ROUNDS]] = 0

    def shuffled(size):
        draw()
        return torch.randperm(size, generator=torch.Generator().manual_seed(draw())).split(BATCH)

    torch.manual_seed(seed)
    for _ in range(2 * sum(again) + CLIENTS + 1):
        draw()
    batches = [list(shuffled(size)) for size in sizes]
    torch.manual_seed(seed)
    for number in range(1, ROUNDS + 1):
        for client, size in enumerate(sizes):
            while len(batches[client]) < number * STEPS:
                batches[client] += shuffled(size)
    return batches


def linear():
    """Return the model."""
    return nn.Linear(FEATURES, 1)


def initial(seed):
    """Return the model that a seed starts with."""
    torch.manual_seed(seed)
    return linear().state_dict()


class Region(fedcore.Client):
    """Trains 100 steps a round on the next of its batches."""

    def __init__(self, patients, batches, lr):
        self.patients, self.batches, self.lr, self.model = patients, iter(batches), lr, linear()

    def get_parameters(self):
        """Return the model."""
        return self.model.state_dict()

    def fit(self, parameters, config):
        """Train."""
        training = fedcore.Training(self.model, parameters, config, self.memory)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        for _ in range(STEPS):
            batch = next(self.batches)
            optimizer.zero_grad()
            cox_loss(self.model(self.patients.covariates[batch])[:, 0], self.patients.outcome[batch]).backward()
            training.step(optimizer)
        return training.result(len(self.patients.outcome))


def run(name, seed, train, test, transport="memory"):
    """Return the concordance of a strategy's model on the test patients, and the model's digest."""
    with torch.random.fork_rng(devices=[]):
        start = initial(seed)
        batches = shuffles(seed, name, [len(region.outcome) for region in train])
    strategy, lr = strategy_of(name, start)
    clients = [Region(region, mine, lr) for region, mine in zip(train, batches, strict=True)]
    _, final = run_federation(
        clients, strategy=strategy, config=fedcore.ServerConfig(num_rounds=ROUNDS), transport=transport, at_once=1
    )
    scores = test.covariates @ final["weight"][0] + final["bias"]
    return concordance(scores, test.outcome), fedcore.digest(final)


def markdown(results):
    """Return our results beside the published ones."""
    lines = ["| strategy | " + " | ".join(map(str, SEEDS)) + " | published | median of all seeds |"]
    lines.append("|---" * (len(SEEDS) + 3) + "|")
    for name, found in results.items():
        published = PUBLISHED.get(name, PUBLISHED["Scaffold"])
        pairs = [f"{ours:.4f}" for ours in found[: len(SEEDS)]]
        told = ", ".join(f"{each:.4f}" for each in published)
        lines.append(f"| {name} | {' | '.join(pairs)} | {told} | {statistics.median(found):.4f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 42 on")
    parser.add_argument("--only", help="a strategy")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    folder = os.environ.get("FEDCORE_TCGA_DIR")
    if not folder:
        parser.error("set FEDCORE_TCGA_DIR to a folder with brca.csv and train_test_split.csv")
    torch.set_num_threads(1)
    began, (train, test), results = time.monotonic(), load(folder), {}
    for name in [options.only] if options.only else [*PUBLISHED, "Scaffold, plain"]:
        results[name] = [run(name, SEEDS[0] + number, train, test)[0] for number in range(options.seeds)]
    line = {
        "benchmark": "tcga", "seeds": options.seeds, "seconds": round(time.monotonic() - began, 1),
        "c_index": {name: [round(each, 4) for each in found] for name, found in results.items()},
        "largest_difference": {
            name: round(max(abs(a - b) for a, b in zip(found, PUBLISHED[name], strict=False)), 4)
            for name, found in results.items() if name in PUBLISHED
        },
    }  # fmt: skip
    if options.markdown:
        print(markdown(results))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
