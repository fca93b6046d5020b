"""The running example: what the data look like, and that model and client are the same every time."""

import sys

import pytest
import torch

from fedcore import ServerConfig
from fedcore.data.digits import Digits, DigitsClient, DigitsModel, evaluate, load_digits
from fedcore.errors import MissingDependency
from fedcore.parameters import Spec, digest
from fedcore.strategies.fedavg import FedAvg
from fedcore.testing import run_federation

TRAIN, TEST = load_digits(seed=0)


def digest_of(parameters):
    return digest(parameters, Spec.of(parameters))


@pytest.mark.parametrize(("data", "size"), [(TRAIN, 1437), (TEST, 360)], ids=["train", "test"])
def test_what_the_data_look_like(data, size):
    assert data.images.shape == (size, 1, 8, 8)
    assert data.images.dtype is torch.float32
    assert (data.images.min(), data.images.max()) == (0.0, 1.0)
    assert data.labels.shape == (size,)
    assert data.labels.dtype is torch.int64


def test_each_class_is_split_alike():
    train, test = TRAIN.labels.bincount(), TEST.labels.bincount()
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()


def test_no_picture_is_in_both_parts():
    whole = torch.cat([TRAIN.images, TEST.images]).flatten(1)
    assert len(whole.unique(dim=0)) == 1797


def test_the_seed_decides_the_split():
    assert torch.equal(load_digits(seed=0)[1].labels, TEST.labels)
    assert not torch.equal(load_digits(seed=1)[1].labels, TEST.labels)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedcore\[demo\]'"):
        load_digits()


def test_the_model_follows_its_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, same, other = (digest_of(DigitsModel(seed).state_dict()) for seed in (3, 3, 4))
    assert first == same != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_model_has_integer_buffers():
    assert DigitsModel().state_dict()["features.1.num_batches_tracked"].dtype is torch.int64


def test_a_fit_is_repeatable_and_depends_on_the_seed():
    share = TRAIN.take(torch.arange(100))
    start = DigitsModel().state_dict()
    made = [digest_of(DigitsClient(share).fit(dict(start), {"seed": seed})[0]) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_a_fit_reports_every_step_and_its_mean_loss():
    client, steps = DigitsClient(TRAIN.take(torch.arange(70)), epochs=2), []
    client._report = lambda *progress: steps.append(progress)
    _, examples, metrics = client.fit(DigitsModel().state_dict(), {"seed": 0})
    assert steps == [(step, 6) for step in range(1, 7)]
    assert examples == 70
    assert 0 < metrics["loss"] < 5


def test_the_learning_rate_comes_from_the_config():
    start = DigitsModel().state_dict()
    client = DigitsClient(TRAIN.take(torch.arange(32)), epochs=1)
    trained, _, _ = client.fit({name: value.clone() for name, value in start.items()}, {"seed": 0, "lr": 0.0})
    assert torch.equal(trained["classifier.1.weight"], start["classifier.1.weight"])


def test_evaluate_measures_loss_and_accuracy():
    seven = Digits(torch.zeros(4, 1, 8, 8), torch.full((4,), 7))
    parameters = DigitsModel().state_dict()
    parameters["classifier.3.weight"].zero_()
    parameters["classifier.3.bias"].copy_(torch.eye(10)[7] * 100)
    assert evaluate(parameters, seven) == (0.0, {"accuracy": 1.0})


def test_a_federation_learns():
    strategy = FedAvg(DigitsModel().state_dict(), lambda _, parameters: evaluate(parameters, TEST))
    halves = [TRAIN.take(half) for half in torch.arange(len(TRAIN.labels)).chunk(2)]
    clients = [DigitsClient(half, epochs=1) for half in halves]
    history, _ = run_federation(clients, strategy=strategy, config=ServerConfig(num_rounds=4))
    assert history.latest["accuracy"] > 0.9
