"""Slopes are what mathematics says they are, and the model is where it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcore import ConfigError, ZerothOrder
from fedcore.directions import KINDS, draw, shift

numbers = st.floats(-3, 3, width=32)


def quadratic(numbers, size):
    a = torch.tensor(numbers[: size * size], dtype=torch.float64).view(size, size)
    return a @ a.T + torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@given(
    entries=st.lists(numbers, min_size=16, max_size=16), at=st.lists(numbers, min_size=4, max_size=4),
    mu=st.sampled_from([1e-3, 0.1, 2.0]), seed=st.integers(0, 2**63),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_central_is_exact_for_quadratics_and_forward_off_by_the_curvature(kind, entries, at, mu, seed):
    a, x = quadratic(entries, 4), torch.tensor(at, dtype=torch.float64)
    z = draw(kind, seed, 0, 4).double()
    slope, curvature = (x @ a @ z).item(), (z @ a @ z).item() / 2
    loose = 1e-9 * (1 + abs(slope) + curvature) / mu
    for difference, wanted in (("central", slope), ("forward", slope + mu * curvature)):
        estimator = ZerothOrder(mu=mu, difference=difference, directions=kind)
        (found,) = estimator.estimate([x], lambda: x @ a @ x / 2, [seed]).slopes
        assert found == pytest.approx(wanted, abs=loose)


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_is_the_formula(difference, kind):
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    start, goal = x.clone(), torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)
    estimator = ZerothOrder(mu=1e-4, perturbations=3, difference=difference, directions=kind, seed=5)
    found = estimator.step([x], lambda: (x - goal).square().sum(), lr=0.1)
    wanted = start.clone()
    for seed, slope in zip(found.seeds, found.slopes, strict=True):
        wanted -= 0.1 / 3 * slope * draw(kind, seed, 0, 3).double()
    assert torch.allclose(x, wanted, atol=1e-12)
    assert found.loss == pytest.approx((start - goal).square().sum().item(), abs=1e-6)


def test_the_mean_of_many_slopes_is_the_gradient():
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = ZerothOrder(mu=1e-3, perturbations=400, difference="central").estimate([x], lambda: (x**3).sum())
    directions = torch.stack([draw("gaussian", seed, 0, 3).double() for seed in found.seeds])
    mean = (torch.tensor(found.slopes, dtype=torch.float64)[:, None] * directions).mean(dim=0)
    assert torch.cosine_similarity(mean, 3 * x**2, dim=0) > 0.97
    assert mean.norm() == pytest.approx((3 * x**2).norm().item(), rel=0.2)


def test_a_module_learns():
    torch.manual_seed(0)
    inputs = torch.randn(64, 3)
    aims = inputs @ torch.tensor([[1.0], [-1.0], [2.0]])
    model = nn.Linear(3, 1)
    model.bias.requires_grad = False
    kept = model.bias.clone()
    estimator = ZerothOrder(perturbations=4)
    losses = [estimator.step(model, lambda: (model(inputs) - aims).square().mean(), lr=0.05).loss for _ in range(100)]
    assert losses[-1] < losses[0] / 10
    assert torch.equal(model.bias, kept)
    assert all(each.grad is None for each in model.parameters())


def test_its_own_seeds_go_on():
    first, second = ZerothOrder(seed=4), ZerothOrder(seed=4)
    x = torch.zeros(2)
    drawn = [first.estimate([x], lambda: x.sum()).seeds for _ in range(3)]
    assert len(set(drawn)) == 3
    second.steps = 2
    assert second.estimate([x], lambda: x.sum()).seeds == drawn[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_drift(kind, difference):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    start = x.double()
    ZerothOrder(mu=1e-3, perturbations=250, directions=kind, difference=difference).estimate([x], lambda: torch.tensor(0.0))
    drift = (x.double() - start).square().mean().sqrt().item()
    assert 1e-9 < drift < (1e-7 if difference == "forward" else 2e-6)  # it does drift, and so much


def test_a_loss_that_fails_leaves_the_model_where_it_was():
    x = torch.zeros(3, dtype=torch.float64)
    shift([x], "rademacher", 1, 0.5)
    before, calls = x.clone(), []

    def loss():
        calls.append(x.clone())
        if len(calls) == 2:
            raise ZeroDivisionError
        return x.sum()

    with pytest.raises(ZeroDivisionError):
        ZerothOrder(mu=0.25, difference="central").estimate([x], loss)
    assert torch.equal(x, before)
    assert not torch.equal(calls[1], before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu": 0},
        {"mu": float("nan")},
        {"perturbations": 0},
        {"seed": -1},
        {"difference": "backward"},
        {"directions": "uniform"},
    ],
)
def test_arguments_make_sense(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ZerothOrder(**wrong)
