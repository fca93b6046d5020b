"""SECURITY.md tells the truth where that can be checked: what it names is there, and each promise has a test."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


def section(title):
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title):
    found = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section(title).splitlines() if line.startswith("|")
    ]
    return found[2:]


PROMISES = rows("Promises, and the tests that show them")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda row: row[0][:40])
def test_each_promise_has_tests_that_are_there(promise):
    files = re.findall(r"`(tests/[\w/]+\.py)`", promise[1])
    assert files
    for file in files:
        assert re.search(r"^ *def test_", (ROOT / file).read_text(), re.MULTILINE), file


def test_all_that_is_promised_is_in_the_table():
    assert len(PROMISES) >= 15
    assert all(len(row) == 2 for row in PROMISES)


def test_the_commands_and_names_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", PAGE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    source = "".join(path.read_text() for folder in ("fedcore", "transports") for path in (ROOT / folder).rglob("*.py"))
    names = set(re.findall(r"`([A-Za-z_]+)`", PAGE)) | {name for pair in re.findall(r"`(\w+)\.(\w+)`", PAGE) for name in pair}
    assert {name for name in names if name not in source and name != "eval"} == set()


def test_the_files_that_are_stored_are_called_so():
    source = "".join(path.read_text() for path in (ROOT / "fedcore").rglob("*.py"))
    for name in re.findall(r"`(?:state_dir/)?([\w.]+\.(?:db|jsonl|pem|key|txt))`", section("What is stored where")):
        assert name in source, name


def test_links_lead_somewhere_and_nobody_is_named():
    assert all((ROOT / target).exists() for target in re.findall(r"\]\(([^)#]+)\)", PAGE))
    assert "@" not in PAGE
