"""DeComFL beside FedAvg: the adapters of lora_finetune.py, trained once by a few numbers a round, once by gradients.

Clients of DeComFL compute no gradients, and after the first model a round costs them the same for any size of it.
Needs: pip install 'fedcore[hf]'
"""

import torch
from lora_finetune import ADAPTERS, SITES, Site, accuracy, adapted, bytes_per_round, texts, transformer
from torch.nn import functional

import fedcore
from fedcore.testing import run_federation

ROUNDS = 100


class ByLosses(fedcore.DeComFLClient):
    """Measures losses on batches of 64."""

    def __init__(self, start, seed):
        self.read, counts = texts(seed, number=500)
        self.answers = counts.argmin(dim=1)
        super().__init__(adapted(start), len(self.answers))
        self.model.eval()

    def batch(self, step, config):
        chosen = torch.randint(len(self.answers), (64,), generator=torch.Generator().manual_seed(config["seed"] + step))
        return self.read[chosen], self.answers[chosen]

    def loss(self, batch):
        read, answers = batch
        return functional.cross_entropy(self.model(read).logits, answers)


def show(name, start, rounds, strategy, clients):
    """Train, and print how it went."""
    config = fedcore.ServerConfig(num_rounds=rounds)
    history, final = run_federation(clients, strategy=strategy, config=config, at_once=1, timeout=600.0)
    model = adapted(start)
    model.load_state_dict(final, strict=False)
    print(f"{name}: {bytes_per_round(history):,} bytes per client and round, {accuracy(model):.0%} right after {rounds} rounds")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the clients share few cores
    start = transformer()
    model, seeds = adapted(start).state_dict(), range(1, SITES + 1)
    size = {"min_fit_clients": SITES, "clients_per_round": SITES}
    decomfl = fedcore.DeComFL(model, lr=0.02, steps=2, perturbations=10, trained=[ADAPTERS], **size)
    show("DeComFL", start, ROUNDS, decomfl, [ByLosses(start, seed) for seed in seeds])
    fedavg = fedcore.FedAvg(model, exchange=fedcore.Exchange(include=[ADAPTERS]), **size)
    show("FedAvg", start, 8, fedavg, [Site(start, seed) for seed in seeds])
