"""What the guides show runs as it stands."""

import re
from pathlib import Path

import pytest

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
