"""What the guides show runs as it stands."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedcore
from fedcore.testing import run_federation

DOCS = Path(__file__).parents[2] / "docs"


def blocks(name):
    """Return the Python blocks of a guide, each with the heading it stands under."""
    text = (DOCS / name).read_text()
    found = re.findall(r"^## ([^\n]+)|^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    heading, made = "", []
    for title, code in found:
        heading = title or heading
        if code:
            made.append((heading, code))
    return made


(_, FIRST), *TESTING = blocks("testing.md")


@pytest.mark.parametrize(("heading", "code"), TESTING, ids=[heading for heading, _ in TESTING])
def test_a_block_of_testing_runs_behind_the_first(heading, code, tmp_path):
    names = {"__name__": "guide"}
    exec(compile(FIRST, "testing.md, first block", "exec"), names)
    exec(compile(code, f"testing.md, {heading}", "exec"), names)


def test_there_is_a_block_for_each_instrument():
    from fedcore import testing

    text = "".join(code for _, code in TESTING)
    assert [name for name in testing.__all__ if name not in text] == ["Simulation"]


def test_links_within_a_guide_lead_somewhere():
    text = (DOCS / "testing.md").read_text()
    titles = re.findall(r"^#+ (.+)", text, re.MULTILINE)
    there = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= there


STRATEGIES = {
    "FedAvg": {}, "FedAvgM": {"momentum": 0.5}, "FedAdam": {}, "FedYogi": {}, "FedAdagrad": {}, "FedProx": {"mu": 0.1},
    "Scaffold": {"num_clients": 2}, "FedNova": {}, "FedDyn": {"num_clients": 2}, "FedBuff": {"buffer_size": 1}, "FedAsync": {},
    "Scaffold, option 1": {"num_clients": 2, "option": 1}, "QFedAvg": {"client_lr": 0.05},
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_training_loop_serves_every_strategy(name):
    """The client of docs/algorithms.md, with the lines for anchors where an algorithm needs them, lowers the loss."""
    (loop,) = [code for heading, code in blocks("algorithms.md") if "training.step" in code]
    (anchor,) = [code for heading, code in blocks("algorithms.md") if "wants_anchor" in code]
    before, after = loop.split("        for x, y in training.batches")
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    made = {
        "model": model, "loss": nn.functional.mse_loss, "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "loader": DataLoader(TensorDataset(x, y), batch_size=16),
    }  # fmt: skip
    exec(compile(before + anchor + "        for x, y in training.batches" + after, "algorithms.md", "exec"), made)
    clients = [made["MyClient"]() for _ in range(2)]
    begin = copy.deepcopy(model.state_dict())
    strategy = getattr(fedcore, name.split(",")[0])(begin, **STRATEGIES[name])
    _, final = run_federation(clients, strategy=strategy, config=fedcore.ServerConfig(num_rounds=6), at_once=1)
    losses = []
    for state in (begin, final):
        model.load_state_dict(state)
        losses.append(nn.functional.mse_loss(model(x), y).item())
    assert losses[1] < 0.9 * losses[0]
    assert final["0.num_batches_tracked"].dtype == torch.int64
