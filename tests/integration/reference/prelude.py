"""Supplies the names that the reference design's examples leave undefined: model, loader, loss and accuracy.

Runs one of them: prelude.py server_example.py | client_example.py NAME. The example runs as it stands.
"""

import runpy
import sys

import torch
import torch.nn.functional as F  # noqa: N812 - the examples call it so
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SimpleCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def loader(name):
    draw = torch.Generator().manual_seed(sum(name.encode()))
    return DataLoader(TensorDataset(torch.randn(20, 1, 8, 8, generator=draw), torch.arange(20) % 10), batch_size=10)


if __name__ == "__main__":
    example, *rest = sys.argv[1:]
    names = {
        "SimpleCNN": SimpleCNN, "F": F, "test_loss": 0.5, "accuracy": 0.9,
        "train_loader": loader(rest[0] if rest else "server"),
    }  # fmt: skip
    if rest:  # the example names itself "client_1"; several of them need several names
        import fedcore

        start = fedcore.start_client
        fedcore.start_client = lambda server_address, client, client_id: start(server_address, client, rest[0])
    runpy.run_path(example, init_globals=names)
