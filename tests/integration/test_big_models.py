"""Models above ``map_above`` lie in files without a name, and nothing else changes."""

import os
from pathlib import Path

import pytest
import torch

from fedcore import Client, FedAvg, Server, ServerConfig
from fedcore.errors import ConfigError
from fedcore.parameters import digest
from fedcore.pool import drain
from fedcore.testing import run_federation
from fedcore.transports.memory import Memory

INITIAL = {f"layer.{i}": torch.full((100_000,), float(i)) for i in range(8)}


class Looks(Client):
    """Trains, and counts the mapped files of the process that are in the folder."""

    def __init__(self, folder):
        self.folder, self.mapped = str(folder), set()

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        lines = Path("/proc/self/maps").read_text().splitlines()
        self.mapped |= {line for line in lines if self.folder in line and line.endswith("(deleted)")}
        return {name: tensor + 0.5 for name, tensor in parameters.items()}, 1


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks at its own maps, which are a thing of Linux")
def test_map_above_and_map_folder(tmp_path):
    ends = {}
    for above in (1 << 40, 1 << 20):
        drain()
        client = Looks(tmp_path)
        config = ServerConfig(num_rounds=3, map_above=above, map_folder=str(tmp_path))
        _, final = run_federation([client], strategy=FedAvg(INITIAL, clients_per_round=1), config=config)
        ends[above] = digest(final), bool(client.mapped)
    assert ends[1 << 40][1] is False
    assert ends[1 << 20][1] is True
    assert ends[1 << 40][0] == ends[1 << 20][0]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_checked_before_anything_runs():
    with pytest.raises(ConfigError, match="map_folder"):
        Server("", config=ServerConfig(map_folder="/nowhere"), strategy=FedAvg(INITIAL), transport=Memory())
