"""What every test gets: a check that it leaves no thread behind, and small models to train."""

import threading

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_leaked_threads():
    """Threads of fedcore that outlive the test are an error."""
    before = set(threading.enumerate())
    yield
    late = [t for t in threading.enumerate() if t not in before and t.name.startswith("fedcore")]
    for thread in late:
        thread.join(timeout=5.0)
    left = [t.name for t in late if t.is_alive()]
    assert not left, f"threads left behind: {left}"
