"""Ten clients learn a line, two of them lie: what is left of the model with a mean, and with a robust rule.

The two send ten times the opposite of what they learned. Change the server's strategy, and nothing else, to withstand that.
"""

import torch

import fedcore

BASE = {"w": torch.zeros(20)}
TRUTH = torch.linspace(-1, 1, 20)


def points(seed, count=100):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 20, generator=draw)
    return x, x @ TRUTH > 0


class Honest(fedcore.Client):
    """Does some steps of logistic regression on points of its own."""

    def __init__(self, seed):
        self.x, self.y = points(seed)

    def get_parameters(self):
        return BASE

    def fit(self, parameters, config):
        w = parameters["w"]
        for _ in range(5):
            w = w - 0.5 * (torch.sigmoid(self.x @ w) - self.y.float()) @ self.x / len(self.x)
        return {"w": w}, len(self.x)


class Liar(Honest):
    """Turns what it learned round."""

    def fit(self, parameters, config):
        made, count = super().fit(parameters, config)
        return {"w": parameters["w"] - 10 * (made["w"] - parameters["w"])}, count


def accuracy(strategy):
    clients = [Liar(seed) if seed < 2 else Honest(seed) for seed in range(10)]
    config = fedcore.ServerConfig(num_rounds=5)
    _, final = fedcore.testing.run_federation(clients, strategy=strategy, config=config)
    x, y = points(seed=99, count=2000)
    return ((x @ final["w"] > 0) == y).double().mean().item()


if __name__ == "__main__":
    size = {"clients_per_round": 10, "min_fit_clients": 10}
    print(f"FedAvg:     {accuracy(fedcore.FedAvg(BASE, **size)):.2f}")
    print(f"Multi-Krum: {accuracy(fedcore.MultiKrum(BASE, f=2, **size)):.2f}")
