"""Every name and default of the reference design has a counterpart, and the page that says so tells the truth."""

import ast
import inspect
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference-map.md").read_text()


def rows(columns):
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns and cells[1].startswith("`"):
            yield cells


def resolve(dotted):
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[split:], found)
    raise AssertionError(dotted)


@pytest.mark.parametrize("cells", list(rows(3)), ids=lambda cells: cells[0])
def test_names(cells):
    assert resolve(cells[1].strip("`")) is not None


@pytest.mark.parametrize("cells", list(rows(4)), ids=lambda cells: cells[0])
def test_defaults(cells):
    found = resolve(cells[1].strip("`"))
    if not cells[2].startswith("*"):
        expected = ast.literal_eval(cells[2])
        assert (type(found), found) == (type(expected), expected)


def test_the_page_is_complete():
    from fedcore.protos import fedcore_pb2

    calls = [m.name for m in fedcore_pb2.DESCRIPTOR.services_by_name["FederatedLearningService"].methods]
    assert calls == [
        "RegisterClient", "GetGlobalModel", "GetGlobalModelStream", "SubmitModelUpdate", "SubmitModelUpdateStream",
        "GetServerStatus", "GetAuditLog", "Control", "Heartbeat",
    ]  # fmt: skip
    assert len(list(rows(3))) > 45
    assert len(list(rows(4))) == 15


def test_the_three_positional_arguments_of_the_entry_points_are_those_of_the_reference():
    from fedcore import FedAvg, start_client, start_server

    assert list(inspect.signature(start_server).parameters)[:3] == ["server_address", "config", "strategy"]
    assert list(inspect.signature(start_client).parameters)[:3] == ["server_address", "client", "client_id"]
    assert list(inspect.signature(FedAvg).parameters)[:4] == [
        "initial_parameters", "evaluate_fn", "min_fit_clients", "clients_per_round",
    ]  # fmt: skip
