"""Every known attack against a server with honest clients beside it: each has its answer, and nobody else notices."""

import pytest
import rows.streams
from attack import Attacker, Row, siege_it
from besieged import HERE, Siege
from model import CLIENTS
from procs import Process
from rows import GROUPS, IDENTITIES, TRUSTED
from rows.bodies import CANARY, pickled
from rows.updates import in_one_message

from fedcore.pki import Authority


def besiege(folder, attacks, control, *, kit="honest-0", **settings):
    """Make attacks against a server and its fleet; returns what is not as it should be."""
    with Siege(folder, **settings) as siege:
        attacker = Attacker(siege, kit)
        found = siege_it(attacker, attacks)
        siege.note_peak()
        siege.end()
        found += siege.problems(control)
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_attacks_are_answered_and_change_nothing(group, control, tmp_path):
    found = besiege(tmp_path, GROUPS[group], control)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_uploads_that_break_off_leave_nothing(control, tmp_path, monkeypatch):
    monkeypatch.setattr(rows.streams, "RESETS", 1000)
    row = next(row for row in GROUPS["K"] if row.id == "K15")
    found = besiege(tmp_path, [row], control, round_timeout=300.0)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_a_message_of_a_gigabyte_is_refused_before_it_is_read(control, tmp_path):
    row = Row("U25", "one message of 1 GiB", "RESOURCE_EXHAUSTED", in_one_message(1 << 30), soon=60.0)
    found = besiege(tmp_path, [row], control)
    assert not found, "\n".join(found)


def test_nobody_speaks_for_somebody_else(control, tmp_path):
    authority = Authority.init(tmp_path / "authority")
    kits = {name: authority.issue("client", name) for name in (*CLIENTS, "mallory")}
    kits["server"] = authority.issue("server", "hub", hosts=["localhost"])
    kits["watcher"] = authority.issue("operator", "watcher")
    folder = tmp_path / "run"
    folder.mkdir()
    found = besiege(folder, IDENTITIES, control, kit="mallory", kits=kits)
    assert not found, "\n".join(found)


def test_where_the_operator_names_torch_it_still_runs_nothing(control, tmp_path):
    found = besiege(tmp_path, TRUSTED, control, accept_codecs=["safetensors", "torch"])
    assert not found, "\n".join(found)


def test_a_pickle_in_the_state_directory_is_not_read(tmp_path):
    with Siege(tmp_path, num_rounds=4) as siege:
        siege.server.until("ended")
    blobs = [path for path in (tmp_path / "here" / "state").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert blobs
    for path in blobs:
        path.write_bytes(pickled())
    with Process(HERE / "served.py", folder=str(tmp_path), config=siege.config) as again:
        refused = again.until("refused", met=lambda line: "refused" in line)
    assert refused["refused"] == "STATE_DAMAGED", refused
    assert not list(tmp_path.rglob(CANARY))
