"""Adapters alone travel: three sites fine-tune a transformer with LoRA, and none of them ever sends the transformer.

The transformer is small and built from a configuration; nothing is downloaded. All sites begin with the same one, which finds
the most frequent of four symbols in a text. They teach it to find the rarest one, on texts of their own.
Needs: pip install 'fedcore[hf]'
"""

from copy import deepcopy

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

import fedcore
from fedcore.testing import run_federation

SYMBOLS, LENGTH, SITES, ROUNDS = 4, 12, 3, 8
ADAPTERS = "*lora_*"


def texts(seed, number):
    """Return texts, and the number of each symbol in them."""
    drawn = torch.randint(SYMBOLS, (number, LENGTH), generator=torch.Generator().manual_seed(seed))
    return drawn, functional.one_hot(drawn, SYMBOLS).sum(dim=1)


def train(model, read, answers, steps, lr, seed):
    """Train what wants gradients, on batches of 64."""
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer, draw = torch.optim.AdamW(trained, lr=lr), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(answers), (64,), generator=draw)
        optimizer.zero_grad()
        functional.cross_entropy(model(read[batch]).logits, answers[batch]).backward()
        optimizer.step()


def transformer():
    """Return the model that everybody begins with: to find the most frequent symbol, it is trained in public."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=SYMBOLS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=LENGTH, num_labels=SYMBOLS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip
    read, counts = texts(seed=0, number=2000)
    train(model, read, counts.argmax(dim=1), steps=200, lr=3e-3, seed=0)
    return model


def adapted(start):
    """Return a copy of a transformer with adapters, which change nothing yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(deepcopy(start), LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "dense"]))


def accuracy(model):
    """Return how often it finds the rarest symbol."""
    read, counts = texts(seed=99, number=1000)
    model.eval()
    with torch.inference_mode():
        return (model(read).logits.argmax(dim=1) == counts.argmin(dim=1)).double().mean().item()


class Site(fedcore.Client):
    """Trains its adapters, and returns the whole model: what may travel is not its business."""

    def __init__(self, start, seed):
        self.model, self.seed = adapted(start), seed
        self.read, counts = texts(seed, number=500)
        self.answers = counts.argmin(dim=1)

    def get_parameters(self):
        return self.model.state_dict()

    def fit(self, parameters, config):
        self.model.load_state_dict(parameters)
        train(self.model, self.read, self.answers, steps=20, lr=5e-3, seed=config["seed"])
        return self.model.state_dict(), len(self.answers)


def bytes_per_round(history):
    """Return what a client sent and received in the last round."""
    traffic = list(history.rounds[-1].traffic.values())
    return sum(each.bytes_sent + each.bytes_received for each in traffic) // len(traffic)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the sites share few cores
    start = transformer()
    model = adapted(start)
    print(f"{sum(each.numel() for each in model.parameters()):,} parameters; {accuracy(model):.0%} of the answers are right")
    only_adapters = fedcore.Exchange(include=[ADAPTERS])
    for name, exchange in {"all of them": None, "its adapters": only_adapters}.items():
        strategy = fedcore.FedAvg(model.state_dict(), min_fit_clients=SITES, clients_per_round=SITES, exchange=exchange)
        sites = [Site(start, seed) for seed in range(1, SITES + 1)]
        history, final = run_federation(sites, strategy=strategy, config=fedcore.ServerConfig(num_rounds=ROUNDS))
        trained = adapted(start)
        trained.load_state_dict(final, strict=False)
        sent = bytes_per_round(history)
        print(f"{name}: {sent:,} bytes per client and round, {accuracy(trained):.0%} right after {ROUNDS} rounds")
