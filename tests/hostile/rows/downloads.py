"""M: models that somebody asks for."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

from attack import SERVICE, Row, each
from besieged import STALL
from frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    PREFACE,
    SETTINGS,
    Line,
    frame,
    headers,
    message,
    setting,
)

from fedcore.protos import fedcore_pb2 as pb

NOT_REGISTERED = "FAILED_PRECONDITION NOT_REGISTERED"
NOT_SELECTED = "PERMISSION_DENIED NOT_SELECTED"
BAD_OFFSET = "OUT_OF_RANGE BAD_OFFSET"


def stranger(attacker):
    session = pb.Session(run_id=attacker.siege.run_id, client_id="stranger", token="0" * 32)
    pulled = attacker.unary("GetGlobalModel", pb.GetGlobalModelRequest(session=session, wait_seconds=1.0))
    fetched = attacker.down(pb.GetGlobalModelRequest(session=session, task_id="fit-1-honest-0", total_bytes=100))
    return pulled if pulled == fetched else f"{pulled}; {fetched}"


def stolen(attacker):
    with attacker.siege.gate.held() as number:
        member = attacker.member()
        return member.fetch(task_id=f"fit-{number}-honest-1")


def rest(offset=0, more=0):
    def attack(attacker):
        with attacker.task() as member:
            total = len(member.given.body) + more
            return member.fetch(offset=total + offset if offset < 2 else offset, total_bytes=total)

    return attack


def tasks(*numbers):
    return each(*(lambda attacker, n=n: attacker.member().fetch(task_id=f"fit-{n}-extra") for n in numbers))


def of_nobody(attacker):
    return each(*(lambda attacker, name=name: attacker.member().fetch(task_id=name) for name in ("", "../x", "x" * 60_000)))(
        attacker
    )


def waits(seconds):
    def attack(attacker):
        request = pb.GetGlobalModelRequest(session=attacker.member().session, wait_seconds=seconds)
        return attacker.unary("GetGlobalModel", request, timeout=1.0)

    return attack


def unread(member, count):
    """Return what opens a connection with downloads that nobody reads a second byte of."""
    request = pb.GetGlobalModelRequest(
        session=member.session, task_id=member.given.task.id, total_bytes=len(member.given.body)
    ).SerializeToString()
    asking = headers(SERVICE + "GetGlobalModelStream")
    streams = (
        frame(HEADERS, END_HEADERS, number, asking) + frame(DATA, END_STREAM, number, message(request))
        for number in range(1, 2 * count, 2)
    )
    return PREFACE, frame(SETTINGS, payload=setting(INITIAL_WINDOW, 1)), *streams


def at_once(attacker):
    """Begin a hundred downloads at once; returns how many are ended at once."""
    with attacker.task() as member, Line(attacker.siege.address, *unread(member, 100)) as line:
        ended = (kind == HEADERS and flags & END_STREAM for kind, flags, _, _ in line.frames())
        for _ in range(98):
            next(end for end in ended if end)
        return "98 of 100 refused"


def reads_nothing(attacker):
    with attacker.task() as member, Line(attacker.siege.address, *unread(member, 1)) as line:
        line.until(DATA)
        given_up = attacker.siege.logs("no chunk was taken for", within=STALL + 1.0)
    return "given up" if given_up else "still waiting"


ROWS = [
    Row("M1", "a session that nobody was given", NOT_REGISTERED, stranger),
    Row("M2", "registered, and the task of another client", NOT_SELECTED, stolen),
    Row(
        "M3",
        "the rest of a model from behind its end; from 2⁶³; from 2⁶⁴−1",
        BAD_OFFSET,
        each(rest(1), rest(1 << 63), rest((1 << 64) - 1)),
        remark="offsets are unsigned: −1 arrives as 2⁶⁴−1",
    ),
    Row("M3", "the rest of a model that is longer than it is", BAD_OFFSET, rest(0, more=1)),
    Row(
        "M5",
        "a hundred downloads of one client at once",
        "98 of 100 refused",
        at_once,
        remark="with RESOURCE_EXHAUSTED QUOTA; two are `Limits.streams_per_client`",
    ),
    Row(
        "M6",
        "a reader that takes one byte of a model and no more",
        "given up",
        reads_nothing,
        remark="after `stall_timeout`; a status waits behind the chunk under way, which goes with the connection",
    ),
    Row(
        "M8",
        "tasks of the rounds −1, 0, 2³¹, 2⁶³−1",
        NOT_SELECTED,
        tasks(-1, 0, 1 << 31, (1 << 63) - 1),
        usual=False,
        remark="a download names a task, not a round: BAD_ROUND does not exist",
    ),
    Row("M8", "tasks with no name, a path, 60,000 characters", NOT_SELECTED, of_nobody),
    Row(
        "M8",
        "a wait of 10³⁰⁰, infinitely many, −1 and NaN seconds",
        "INVALID_ARGUMENT BAD_TYPE",
        each(*(waits(seconds) for seconds in (1e300, float("inf"), -1.0, float("nan")))),
    ),
]
