"""Robust strategies do no harm where nobody attacks, and hold where FedAvg collapses."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def robustness():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # twenty clients share few cores
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("robustness")
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["logistic", "perceptron"])
def test_y1_y2_little_is_lost_without_an_attack_and_with_one(robustness, model):
    tables = robustness.tables_of("gaussian", model, ["none", "sign flip x10"], robustness.ROUNDS)
    attacked = tables["dirichlet 1"]["sign flip x10"]
    assert attacked["FedAvg"] <= 30
    plain = robustness.lost(tables, "dirichlet 0.5", "none")
    for name in attacked.keys() - {"FedAvg"}:
        assert robustness.lost(tables, "iid", "none")[name] <= 3, name
        assert plain[name] <= (4 if name.startswith("NNM") else 8), name
        assert robustness.lost(tables, "dirichlet 1", "sign flip x10")[name] <= 5, name
