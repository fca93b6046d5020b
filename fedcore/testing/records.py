"""What clients were told, written down by themselves, and whether a state directory keeps to it.

The check knows nothing of fedcore's coordinator: it reads the ledger's tables and files with SQLite and safetensors' own
layout, and the clients' records, and judges the one by the other.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fedcore.limits import Limits
from fedcore.messages import Kind, Message, Submit, Submitted
from fedcore.transport import Body, Connection, Handler, Listener, Reply, Transport


@dataclass(frozen=True)
class Told:
    """The answer a client got to an update."""

    task_id: str
    client_id: str
    round: int
    attempt_id: str
    digest: str
    num_examples: int
    outcome: str

    @classmethod
    def of(cls, submit: Submit, submitted: Submitted) -> Told:
        """Return what a client was told."""
        return cls(
            submit.task_id, submit.session.client_id, submit.round, submit.attempt_id, submit.digest, submit.num_examples,
            submitted.outcome.value,
        )  # fmt: skip


class Recorder(Transport):
    """Wraps a transport, and writes down the answer to every update that clients send through it.

    Args:
        inner: the transport that does the work.

    Attributes:
        told: the answers, in the order they came.
    """

    def __init__(self, inner: Transport):
        self.inner, self.anywhere = inner, inner.anywhere
        self.told: list[Told] = []
        self._lock = threading.Lock()

    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Listen with the inner transport."""
        return self.inner.listen(address, handler, limits)

    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Connect with the inner transport."""
        return _Recorded(self, self.inner.connect(address, limits))

    def note(self, submit: Submit, submitted: Submitted) -> None:
        """Write down an answer."""
        with self._lock:
            self.told.append(Told.of(submit, submitted))


class _Recorded(Connection):
    def __init__(self, recorder: Recorder, inner: Connection):
        self._recorder, self._inner = recorder, inner

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        reply = self._inner.request(message, body, timeout)
        if isinstance(message, Submit) and isinstance(reply.message, Submitted):
            self._recorder.note(message, reply.message)
        return reply

    def close(self) -> None:
        self._inner.close()


@dataclass
class Findings:
    """What is wrong with a state directory, and what was looked at."""

    faults: list[str] = field(default_factory=list)
    rounds: int = 0
    updates: int = 0
    acknowledged: int = 0

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault unless something holds."""
        if not holds:
            self.faults.append(fault)


def check_state(
    folder: str | Path, told: Iterable[Told] = (), *, quorum: int = 1, most: int | None = None, late: int = 0
) -> Findings:
    """Judge a state directory by what clients were told.

    What must hold: an acknowledged update is in exactly one round, the one it was made for unless late ones count, with the
    digest and the weight it had; a client has one update in a round; each round has one outcome, and a committed one goes on
    from the model before it; no committed round has fewer updates than the quorum, or more than were invited; the newest
    model is on the disk, whole.

    Args:
        folder: the state directory of a server that does not run.
        told: what clients were told.
        quorum: the fewest updates of a round.
        most: the most.
        late: how many rounds after its own an update may count in.
    """
    with closing(sqlite3.connect(f"{Path(folder).absolute().as_uri()}/ledger.db?mode=ro", uri=True)) as database:
        rounds = database.execute("SELECT number, state, base, model FROM rounds ORDER BY number").fetchall()
        updates = database.execute("SELECT task_id, round, client_id, digest, num_examples, counted FROM updates").fetchall()
        lost = {number for number, facts in database.execute("SELECT number, facts FROM rounds") if "lost" in json.loads(facts)}
    found = check_rows(rounds, updates, told, quorum=quorum, most=most, late=late, lost=lost)
    newest = next((model for number, state, _, model in reversed(rounds) if state == "committed" and number not in lost), "")
    _check_file(found, Path(folder) / "models", newest)
    return found


def check_rows(
    rounds: Sequence[tuple[int, str, str, str | None]],
    updates: Sequence[tuple[str, int, str, str, int, int]],
    told: Iterable[Told] = (),
    *,
    quorum: int = 1,
    most: int | None = None,
    late: int = 0,
    lost: Collection[int] = (),
) -> Findings:
    """Judge what a server noted, wherever it did; see :func:`check_state`.

    Args:
        rounds: number, state, base and model of each, in order, from the first model's 0 on.
        updates: task id, round, client id, digest, number of examples, and the round it counts in.
        told: what clients were told.
        quorum: the fewest updates of a round.
        most: the most.
        late: how many rounds after its own an update may count in.
        lost: rounds whose models were lost, and given up.
    """
    found = Findings(rounds=len(rounds) - 1, updates=len(updates))
    _check_rounds(found, rounds, lost)
    _check_updates(found, rounds, updates, quorum, most)
    for task_id, number, *_, counted in updates:
        found.expect(0 <= counted - number <= late, f"{task_id} was made for round {number}, and counts in {counted}")
    _check_told(found, updates, list(told))
    return found


def _check_rounds(
    found: Findings, rounds: Sequence[tuple[int, str, str, str | None]], lost: Collection[int]
) -> None:
    current: str | None = ""
    for place, (number, state, base, model) in enumerate(rounds):
        found.expect(number == place, f"round {number} stands at place {place}: numbers have gaps or repeat")
        going = state in ("open", "closed")
        found.expect(not going or place == len(rounds) - 1, f"round {number} is {state}, but a later one has begun")
        found.expect(number == 0 or base == current, f"round {number} does not go on from the model before it")
        found.expect((model is not None) == (state == "committed"), f"round {number} is {state} with model {model}")
        if state == "committed" and number not in lost:
            current = model


def _check_updates(
    found: Findings,
    rounds: Sequence[tuple[int, str, str, str | None]],
    updates: Sequence[tuple[str, int, str, str, int, int]],
    quorum: int,
    most: int | None,
) -> None:
    for key, count in Counter((number, client) for _, number, client, *_ in updates).items():
        found.expect(count == 1, f"client {key[1]} has {count} updates in round {key[0]}")
    sizes = Counter(counted for *_, counted in updates)
    for number, state, _, _ in rounds[1:]:
        if state == "committed":
            found.expect(sizes[number] >= quorum, f"round {number} was committed with {sizes[number]} of {quorum} updates")
            found.expect(most is None or sizes[number] <= most, f"round {number} has {sizes[number]} updates, above {most}")


def _check_told(found: Findings, updates: Sequence[tuple[str, int, str, str, int, int]], told: list[Told]) -> None:
    rows = {task_id: (number, client, name, weight) for task_id, number, client, name, weight, _ in updates}
    told = [each for each in told if each.task_id.startswith(f"{Kind.FIT}-")]  # of other tasks nothing is noted
    counted = [each for each in told if each.outcome in ("accepted", "duplicate")]
    found.acknowledged = len({each.task_id for each in counted})
    for each in counted:
        noted = rows.get(each.task_id)
        wanted = (each.round, each.client_id, each.digest, each.num_examples)
        found.expect(noted == wanted, f"{each.task_id} was acknowledged as {wanted}, and is noted as {noted}")
    for task_id, count in Counter(each.task_id for each in told if each.outcome == "accepted").items():
        found.expect(count == 1, f"{task_id} was accepted {count} times")


def _check_file(found: Findings, folder: Path, name: str) -> None:
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        found.faults.append(f"the newest model, {name[:16]}, is not on the disk")
        return
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    found.expect(8 + length + max(ends, default=0) == len(content), f"the newest model's file has {len(content)} bytes")
