"""The tests import the helpers of this folder and of tests/load, which are scripts, too."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "load")]


@pytest.fixture(scope="session")
def control(tmp_path_factory):
    """Return what becomes of each round when nobody disturbs: the SHA-256 of its model, and whose updates count."""
    from besieged import Siege

    with Siege(tmp_path_factory.mktemp("control"), pace=0.0, num_rounds=200, durable=False) as siege:
        siege.end()
        return siege.rounds()
