"""What a server that lies can do to an honest client: it ends with a typed error, and has run and allocated nothing."""

import pytest
from besieged import HERE
from procs import MIB, Process
from rows.bodies import CANARY
from rows.servers import ROWS, Bait

from fedcore.pki import Authority

BUDGET = 64 * MIB


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    own, foreign = Authority.init(folder / "own"), Authority.init(folder / "foreign")
    return {
        "victim": own.issue("client", "victim"), "elsewhere": own.issue("server", "elsewhere", hosts=["elsewhere.example"]),
        "foreign": foreign.issue("server", "hub", hosts=["localhost"]),
    }  # fmt: skip


def test_a_client_outlives_every_lie(kits, tmp_path):
    found = []
    with Process(HERE / "victim.py", folder=str(tmp_path), kit=str(kits["victim"])) as victim:
        victim.until("ready")
        bait = Bait(victim, kits)
        for number, row in enumerate(ROWS):
            try:
                answer = row.send(bait)
            except AssertionError as error:
                found.append(f"{row.id} {row.what}: {error}")
                break
            if answer != row.answer:
                found.append(f"{row.id} {row.what}: {answer} instead of {row.answer} ({bait.text[:150]})")
            if not number:
                victim.forget_peak()
                before = victim.rss
        if victim.peak > before + BUDGET:
            found.append(f"the client grew by {(victim.peak - before) / MIB:.0f} MiB")
    if list(tmp_path.rglob("*")):
        found.append(f"files: {list(tmp_path.rglob('*'))}, among them perhaps the {CANARY}")
    assert not found, "\n".join(found)
