"""One federation, every transport and codec: the final model is the same, bit for bit, whatever order clients answer in."""

import hashlib
import threading

import pytest
import torch
from torch import nn

from fedcore import Client, FedAvg, Grpc, Memory, ServerConfig, digest
from fedcore.testing import run_federation
from fedcore.transports.grpc import TransferPolicy

CODECS = ["safetensors", "torch", "msgpack", "protobuf"]
CODECS += [*(f"{name}+lz4" for name in CODECS), "safetensors+zstd", "delta+zstd"]
TRANSPORTS = {
    "memory": Memory,
    "reference": lambda: Memory(by_reference=True),
    "grpc-unary": lambda: Grpc(transfer=TransferPolicy(mode="unary")),
    "grpc-stream": lambda: Grpc(transfer=TransferPolicy(mode="stream")),
}


class TiedModel(nn.Module):
    """A tiny language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(torch.relu(self.mix(self.embed(x[:, 0].long().abs() % 11))))


def batchnorm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 11))


MODELS = {
    "batchnorm": batchnorm,
    "bf16": lambda: batchnorm().bfloat16(),
    "tied": TiedModel,
}


class Trainer(Client):
    """One step of SGD on data drawn from the seed of the task; answers in the order of ``turns``."""

    def __init__(self, name, make, turns=None):
        self.name, self.turns = name, turns
        self.model = make()

    def get_parameters(self):
        return self.model.state_dict()

    def fit(self, parameters, config):
        self.model.load_state_dict(parameters)
        self.model.train()
        dtype = next(self.model.parameters()).dtype
        draw = torch.Generator().manual_seed(config["seed"] % (1 << 31))
        x = torch.randn(16, 4, generator=draw).to(dtype)
        y = torch.randint(11, (16,), generator=draw)
        loss = nn.functional.cross_entropy(self.model(x).float(), y)
        self.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= 0.1 * parameter.grad
        if self.turns:
            self.turns.wait_for(self.name, config["round"])
        return self.model.state_dict(), 10 + 3 * int(self.name[-1]), {"loss": loss.item()}


class Turns:
    """Lets clients finish in a given order, another one each round."""

    def __init__(self, orders):
        self.orders, self.done, self.condition = orders, {}, threading.Condition()

    def wait_for(self, name, number):
        order = self.orders[number % len(self.orders)]
        with self.condition:
            before = set(order[: order.index(name)])
            assert self.condition.wait_for(lambda: before <= self.done.get(number, set()), timeout=30)
            self.done.setdefault(number, set()).add(name)
            self.condition.notify_all()


def train(transport, codec, make=batchnorm, turns=None, **config):
    torch.manual_seed(7)
    initial = make().state_dict()
    names = ["client-0", "client-1", "client-2"]
    history, final = run_federation(
        [Trainer(name, make, turns) for name in names],
        strategy=FedAvg(initial, clients_per_round=3, min_fit_clients=3),
        config=ServerConfig(num_rounds=3, **config),
        transport=transport,
        codec=codec,
        client_ids=names,
    )
    assert [record.outcome for record in history.rounds] == ["committed"] * 3
    assert list(final) == list(initial)
    return final


def sha256(parameters):
    hasher = hashlib.sha256()
    for name, tensor in parameters.items():
        hasher.update(name.encode())
        hasher.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


@pytest.fixture(scope="module")
def expected():
    """The SHA-256 of each model after training on the memory transport."""
    return {name: sha256(train(Memory(), "safetensors", make)) for name, make in MODELS.items()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_cell_ends_with_the_same_bits(transport, codec, model, expected):
    final = train(TRANSPORTS[transport](), codec, MODELS[model])
    assert sha256(final) == expected[model]
    if model == "tied":
        assert final["out.weight"] is final["embed.weight"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_order_of_answers_does_not_matter(transport, expected):
    names = ["client-0", "client-1", "client-2"]
    for first in range(2):
        turns = Turns([names[first:] + names[:first], names[::-1], [names[1], names[0], names[2]]])
        assert sha256(train(TRANSPORTS[transport](), "safetensors", turns=turns)) == expected["batchnorm"]


@pytest.mark.parametrize("transport", ["memory", "grpc-stream"])
def test_slices_do_not_matter(transport, expected):
    assert sha256(train(TRANSPORTS[transport](), "safetensors", shard_bytes=4096)) == expected["batchnorm"]


def test_the_digest_of_the_history_is_that_of_the_model():
    torch.manual_seed(7)
    initial = batchnorm().state_dict()
    names = ["client-0", "client-1"]
    history, final = run_federation(
        [Trainer(name, batchnorm) for name in names], strategy=FedAvg(initial), client_ids=names
    )
    assert history.rounds[-1].digest == digest(final)
    assert history.rounds[-1].accepted == names
