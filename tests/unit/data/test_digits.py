"""The running example: the split, the model and the client do the same thing whenever they are asked."""

import sys
from collections import Counter

import pytest
import torch

from fedcore import MissingDependency, digest
from fedcore.client import offers_evaluation
from fedcore.data.digits import DigitsClient, DigitsModel, evaluate, load_digits

pytest.importorskip("sklearn")


class Watched(DigitsClient):
    """Remembers what it reported."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.seen = []

    def report_progress(self, step, total):
        self.seen.append((step, total))


@pytest.fixture(scope="module")
def halves():
    return load_digits(0)


@pytest.fixture(scope="module")
def share(halves):
    return halves[0].take(torch.arange(100))


def copied(parameters):
    return {name: tensor.clone() for name, tensor in parameters.items()}


def pictures(*parts):
    return Counter((image.numpy().tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True))


def test_shapes_dtypes_and_range(halves):
    for part, size in zip(halves, (1437, 360), strict=True):
        assert part.images.shape == (size, 1, 8, 8)
        assert part.labels.shape == (size,)
        assert (part.images.dtype, part.labels.dtype) == (torch.float32, torch.int64)
        assert (part.images.min(), part.images.max()) == (0.0, 1.0)
        assert part.labels.unique().tolist() == list(range(10))


def test_each_class_is_split_four_to_one(halves):
    train, test = (part.labels.bincount() for part in halves)
    assert ((train + test) * 0.2 - test).abs().max() < 1


def test_every_picture_is_in_one_half():
    assert pictures(*load_digits(1)) == pictures(*load_digits(2))
    assert pictures(*load_digits(1)).total() == 1797


def test_the_seed_decides_the_split(halves):
    for first, second in zip(load_digits(0), halves, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    assert not torch.equal(load_digits(1)[1].images, halves[1].images)


def test_taking_keeps_pictures_and_labels_together(halves):
    train = halves[0]
    taken = train.take(torch.tensor([7, 3]))
    assert torch.equal(taken.images, torch.stack([train.images[7], train.images[3]]))
    assert taken.labels.tolist() == [train.labels[7].item(), train.labels[3].item()]


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedcore\[demo\]'"):
        load_digits()


def test_the_seed_decides_the_model_and_nothing_else_is_touched():
    before = torch.get_rng_state()
    first, again, other = (digest(DigitsModel(seed).state_dict()) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_has_buffers_and_gives_logits(halves):
    model = DigitsModel()
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(38_000, rel=0.02)
    assert model.state_dict()["features.1.num_batches_tracked"].dtype == torch.int64
    assert model.eval()(halves[1].images[:3]).shape == (3, 10)


def test_a_fit_depends_on_its_arguments_alone(share):
    initial = copied(DigitsModel(1).state_dict())
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(results))
        parameters, examples, metrics = DigitsClient(share, epochs=1).fit(copied(initial), {"seed": seed, "round": 1})
        results.append((digest(parameters), examples, metrics["loss"]))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0] != digest(initial)
    assert [examples for _, examples, _ in results] == [100] * 3


def test_a_second_fit_does_not_know_of_the_first(share):
    initial, client = copied(DigitsModel(1).state_dict()), DigitsClient(share, epochs=1)
    first = digest(client.fit(copied(initial), {"seed": 5})[0])
    client.fit(copied(DigitsModel(2).state_dict()), {"seed": 6})
    assert digest(client.fit(copied(initial), {"seed": 5})[0]) == first


def test_the_step_comes_from_the_config(share):
    initial = DigitsModel().state_dict()
    still, _, _ = DigitsClient(share, epochs=1).fit(copied(initial), {"seed": 0, "lr": 0.0})
    assert all(torch.equal(still[name], initial[name]) for name, _ in DigitsModel().named_parameters())


def test_every_step_is_reported(share):
    client = Watched(share, epochs=3)
    client.fit(copied(DigitsModel().state_dict()), {"seed": 0})
    assert client.seen == [(step, 12) for step in range(1, 13)]  # batches of 32, 32, 32 and 4


def test_training_helps(halves, share):
    initial = copied(DigitsModel().state_dict())
    parameters, _, metrics = DigitsClient(share, epochs=8).fit(copied(initial), {"seed": 0})
    (loss, before), (better, after) = evaluate(initial, halves[1]), evaluate(parameters, halves[1])
    assert better < loss
    assert before["accuracy"] < 0.4 < 0.7 < after["accuracy"] <= 1
    assert 0 < metrics["loss"] < loss


def test_it_trains_and_the_server_evaluates(share):
    client = DigitsClient(share)
    assert not offers_evaluation(client)
    assert list(client.get_parameters()) == list(DigitsModel().state_dict())


def test_evaluating_changes_nothing(halves):
    parameters = DigitsModel().state_dict()
    before = digest(parameters)
    assert evaluate(parameters, halves[1]) == evaluate(parameters, halves[1])
    assert digest(parameters) == before
