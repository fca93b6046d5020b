"""What the tests under load share: the helpers of this folder, and the lines that say what was measured."""

import json
import os
import resource
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests import the helpers, which are scripts, too

_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))  # thousands of connections; child processes inherit it


@pytest.fixture
def found():
    """Return a function that says what was measured, as one line of JSON, and returns the bounds that do not hold.

    It takes the name of the row, its bounds as ``name=(value, limit)`` with the most important one first, and further figures.
    """

    def say(row, bounds, **figures):
        broken = {name: pair for name, pair in bounds.items() if not pair[0] <= pair[1]}
        what, (value, limit) = next(iter(bounds.items()))
        line = json.dumps(
            {"id": row, "value": value, "limit": limit, "pass": not broken, "what": what, "bounds": bounds, **figures}
        )
        sys.stdout.write(line + "\n")
        if path := os.environ.get("FEDCORE_FOUND"):
            with Path(path).open("a") as file:
                file.write(line + "\n")
        return broken

    return say
