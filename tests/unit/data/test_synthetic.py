"""The data of FedProx: sizes, spreads and laws are those that its paper states."""

import numpy as np
import pytest
import torch

from fedcore.data.synthetic import CLASSES, FEATURES, synthetic
from fedcore.errors import ConfigError


def joined(device):
    train, test = device
    return torch.cat([train.inputs, test.inputs]), torch.cat([train.labels, test.labels])


def test_what_the_data_look_like():
    for train, test in synthetic(1, 1, seed=0):
        size = len(train.labels) + len(test.labels)
        assert size >= 50
        assert len(train.labels) == int(0.9 * size)
        assert train.inputs.shape[1] == test.inputs.shape[1] == FEATURES
        assert train.inputs.dtype is torch.float32
        assert train.labels.dtype is torch.int64
        assert 0 <= train.labels.min() <= train.labels.max() < CLASSES


def test_the_seed_decides():
    first, same, other = (synthetic(1, 1, devices=3, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first[2][0].inputs, same[2][0].inputs)
    assert not torch.equal(first[0][0].inputs[:20], other[0][0].inputs[:20])


def test_sizes_are_lognormal_above_fifty():
    """Half of LogNormal(4, 2) lies below e ** 4, and its logarithm's deviation is 2."""
    sizes = np.array([len(joined(device)[1]) for device in synthetic(0, 0, devices=400, seed=1)]) - 50
    assert 43 < np.median(sizes) < 69
    assert 1.5 < np.log(sizes + 1).std() < 2.2


def test_inputs_have_the_covariance_of_the_paper():
    inputs, _ = joined(max(synthetic(1, 1, devices=100, seed=0), key=lambda device: len(device[0].labels)))
    assert len(inputs) > 2000
    wanted = torch.arange(1, FEATURES + 1) ** -1.2
    assert torch.allclose(inputs.var(dim=0), wanted, rtol=0.2)
    assert (torch.corrcoef(inputs.T) - torch.eye(FEATURES)).abs().max() < 0.15


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_beta_is_the_deviation_of_the_devices_centers(beta):
    """A device's center is drawn round B_k with deviation 1: its mean over 60 features has B_k's deviation and 1/sqrt(60)."""
    centers = torch.stack([joined(device)[0].mean(dim=0) for device in synthetic(0, beta, devices=200, seed=3)])
    assert centers.mean(dim=1).std() == pytest.approx((beta**2 + 1 / 60) ** 0.5, rel=0.2)
    assert centers.std(dim=1).mean() == pytest.approx(1.0, rel=0.1)


def accuracy(fit_to, on):
    """Return how well the best linear law of one device does on another."""
    x, y = joined(fit_to)
    ones = torch.ones(len(x), 1)
    found = torch.linalg.lstsq(torch.cat([x, ones], 1), torch.nn.functional.one_hot(y, CLASSES).float()).solution
    x, y = joined(on)
    return ((torch.cat([x, torch.ones(len(x), 1)], 1) @ found).argmax(dim=1) == y).float().mean().item()


def test_devices_share_a_law_in_the_iid_variant_alone():
    def across(devices):
        big = sorted(devices, key=lambda device: -len(device[0].labels))[:4]
        return np.mean([accuracy(one, other) for one in big for other in big if one is not other])

    same, different = (across(synthetic(0, 0, iid=iid, seed=2)) for iid in (True, False))
    assert same > 0.6
    assert different < 0.3


@pytest.mark.parametrize("iid", [True, False])
def test_every_device_has_a_linear_law(iid):
    assert np.mean([accuracy(device, device) for device in synthetic(0, 0, iid=iid, seed=2)]) > 0.75


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"alpha": -1}, "synthetic alpha must be a number of at least 0, not -1"),
        ({"beta": float("nan")}, "synthetic beta must be a number"),
        ({"devices": 0}, "synthetic devices must be an integer of at least 1, not 0"),
        ({"seed": -1}, "synthetic seed"),
        ({"iid": True}, "give alpha=0 and beta=0 with iid=True"),
    ],
)
def test_arguments_that_make_no_sense(arguments, says):
    with pytest.raises(ConfigError, match=says):
        synthetic(**arguments)
