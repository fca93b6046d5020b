"""One setting makes it personal: FedAvg, FedBN and FedPer on clients whose data differ.

Four clients have handwritten digits, each with a contrast and a labelling of its own: what is a 3 to one is an 8 to another. A
common head cannot serve them all. With an Exchange the server never sees what is personal, and each client keeps it.
"""

import torch

import fedcore
from fedcore.data.digits import Digits, DigitsClient, DigitsModel, load_digits
from fedcore.testing import run_federation

CLIENTS, ROUNDS = 4, 4


class Own(DigitsClient):
    """Trains on one half of its data, and evaluates on the other."""

    def __init__(self, data):
        half = len(data.labels) // 2
        super().__init__(data.take(torch.arange(half)))
        self.test = data.take(torch.arange(half, len(data.labels)))

    def evaluate(self, parameters, config):
        self.model.load_state_dict(parameters)
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(self.test.images)
        right = (logits.argmax(1) == self.test.labels).double().mean().item()
        return torch.nn.functional.cross_entropy(logits, self.test.labels).item(), len(self.test.labels), {"accuracy": right}


def clients():
    """Return the clients, each with a contrast and an order of labels of its own."""
    whole, _ = load_digits()
    draw, made = torch.Generator().manual_seed(0), []
    for part in torch.arange(len(whole.labels)).chunk(CLIENTS):
        mine, order = whole.take(part), torch.arange(10)
        order[torch.randperm(10, generator=draw)[:4]] = order[torch.randperm(10, generator=draw)[:4]].flip(0)
        contrast = 0.5 + 2 * torch.rand(1, generator=draw)
        made.append(Own(Digits(mine.images * contrast, order[mine.labels])))
    return made


def accuracy(exchange):
    """Return the mean accuracy of the clients on their own data after the last round."""
    strategy = fedcore.FedAvg(
        DigitsModel().state_dict(), min_fit_clients=CLIENTS, clients_per_round=CLIENTS, exchange=exchange
    )
    config = fedcore.ServerConfig(num_rounds=ROUNDS, evaluate_timeout=60)
    history, final = run_federation(clients(), strategy=strategy, config=config, timeout=300)
    return history.latest["evaluate/accuracy"], len(final)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the clients share few cores
    for name, exchange in {
        "FedAvg": None,
        "FedBN": fedcore.Exchange(exclude=["features.1.*"]),
        "FedPer": fedcore.Exchange(exclude=["classifier.*"]),
    }.items():
        found, tensors = accuracy(exchange)
        print(f"{name:7} {tensors:2} tensors travel; accuracy on the clients' own data {found:.2f}")
