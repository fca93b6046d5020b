"""DeComFL: bytes of a round for models of three sizes, the server's time with few and many clients, accuracy on digits.

Everything is in one process over the memory transport. The server's time of a round is that of its mathematics: the mean of
the slopes, the next model, and what is sent, as `Strategy.start_round` to `Strategy.download` take it, without the clients'
own work.
"""

import argparse
import json
import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from fedcore import Aggregator, DeComFL, DeComFLClient, ServerConfig
from fedcore.aggregator import Update
from fedcore.data.digits import DigitsModel, load_digits
from fedcore.messages import Kind
from fedcore.testing import run_federation
from fedcore.trail import SLOPES


def reader():
    """Return a model of the digits with 1,210 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def demo():
    """Return the demo's model, 38,331 parameters.

    Its BatchNorm is shown 256 pictures and stays as it is then: a loss must be the same function twice.
    """
    (train, _), model = load_digits(), DigitsModel()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what was seen, which is once
    with torch.no_grad():
        model(train.images[:256])
    return model.eval()


class Vector(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(size))


class Pulls(DeComFLClient):
    def __init__(self, size):
        super().__init__(Vector(size), 1)

    def batch(self, step, config):
        return None

    def loss(self, batch):
        return (self.model.x - 1).square().mean()


class Reads(DeComFLClient):
    def __init__(self, model, share, batch):
        super().__init__(model, len(share.labels))
        self.share, self.size = share, batch

    def batch(self, step, config):
        draw = torch.Generator().manual_seed(config["seed"] + step)
        return self.share.take(torch.randperm(len(self.share.labels), generator=draw)[: self.size])

    def loss(self, batch):
        return functional.cross_entropy(self.model(batch.images), batch.labels)


def bytes_of(size):
    """Return the bytes of each client in the first round, and in the one after, down and up."""
    strategy = DeComFL(Vector(size).state_dict(), lr=0.1, perturbations=2, min_fit_clients=2)
    clients = [Pulls(size), Pulls(size)]
    history, _ = run_federation(clients, strategy=strategy, config=ServerConfig(num_rounds=3), timeout=3000, at_once=1)
    (first, *_), later, last = (list(r.traffic.values()) for r in history.rounds)
    assert sorted(map(str, later)) == sorted(map(str, last)), "rounds differ"
    return {"first": first.bytes_sent, "down": later[0].bytes_sent, "up": later[0].bytes_received}


def server_seconds(clients, size, rounds):
    """Return the median time of the server's mathematics of a round."""
    strategy = DeComFL(Vector(size).state_dict(), lr=1e-6, perturbations=5, clients_per_round=clients)
    model, taken = strategy.initialize_parameters(), []
    slopes = torch.randn(clients, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for number in range(1, rounds + 1):
        since = time.perf_counter()
        aggregator: Aggregator = strategy.start_round(number, model)
        for client in range(clients):
            aggregator.add(Update({SLOPES: slopes[client]}, 1 + client, f"client-{client}", number))
        before, model = model, strategy.step(number, model, aggregator.result())
        assert before is not model
        held = strategy.state_dict()["digests"][-1]
        for client in range(clients):
            strategy.download(Kind.FIT, number + 1, f"client-{client}", model, held)
        taken.append(time.perf_counter() - since)
    return median(taken[1:])


def accuracy(make, rounds, lr):
    """Return how often a model reads the digits right after so many rounds."""
    train, test = load_digits()
    shares = [train.take(torch.arange(part, len(train.labels), 4)) for part in range(4)]
    model = make()
    everybody, trained = {"clients_per_round": 4, "min_fit_clients": 4}, ["*.weight", "*.bias"]
    strategy = DeComFL(model.state_dict(), lr=lr, steps=2, perturbations=10, trained=trained, **everybody)
    clients, config = [Reads(make(), share, 128) for share in shares], ServerConfig(num_rounds=rounds)
    _, final = run_federation(clients, strategy=strategy, config=config, timeout=3000, at_once=1)
    model.load_state_dict(final)
    with torch.inference_mode():
        return (model(test.images).argmax(dim=1) == test.labels).double().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 1_000_000, 100_000_000])
    parser.add_argument("--clients", type=int, nargs=2, default=[2, 20])
    parser.add_argument("--size", type=int, default=1_000_000, help="parameters of the model whose server is timed")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that are timed, each")
    parser.add_argument("--rounds", type=int, default=200, help="on digits, with the small model")
    parser.add_argument("--lr", type=float, default=0.1, help="likewise")
    parser.add_argument("--demo-rounds", type=int, default=400, help="on digits, with the demo's model")
    parser.add_argument("--demo-lr", type=float, default=0.003, help="likewise")
    options = parser.parse_args()
    few, many = options.clients
    seconds = {each: server_seconds(each, options.size, options.repeats) for each in (few, many)}
    print(json.dumps({
        "bytes_per_client_and_round": {str(size): bytes_of(size) for size in options.sizes},
        "server_seconds": {str(each): round(taken, 4) for each, taken in seconds.items()},
        "server_ratio": round(seconds[many] / seconds[few], 3), "digits_rounds": options.rounds,
        "digits_accuracy": round(accuracy(reader, options.rounds, options.lr), 3), "demo_rounds": options.demo_rounds,
        "demo_accuracy": round(accuracy(demo, options.demo_rounds, options.demo_lr), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
