"""U: updates, in one message and as a stream alike."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from attack import SERVICE, Member, Row, one, together, update
from frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, Line, frame, headers, message
from model import MODEL

from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import TransferPolicy, wire

MISMATCH, BAD_DTYPE = "INVALID_ARGUMENT SCHEMA_MISMATCH", "INVALID_ARGUMENT BAD_DTYPE"
LENGTH, WEIGHT, NON_FINITE = (
    "INVALID_ARGUMENT LENGTH_MISMATCH",
    "INVALID_ARGUMENT INVALID_WEIGHT",
    "INVALID_ARGUMENT NON_FINITE",
)
STALE, FUTURE = "FAILED_PRECONDITION STALE_ROUND", "FAILED_PRECONDITION FUTURE_ROUND"
LEGAL = pb.Tensors.FromString(wire._tensors_bytes(Spec.of(MODEL).infos))
LIMIT = TransferPolicy().message_limit


# --- the header ---


def headed(**fields):
    """Return what sends an update with other fields in its header; a function is given the right value."""

    def spoil(header, body):
        for name, value in fields.items():
            setattr(header, name, value(getattr(header, name)) if callable(value) else value)

    return update(spoil)


def scalar(**kind):
    return pb.Scalar(**kind)


def nested(depth):
    made = pb.Scalar(integer=1)
    for _ in range(depth):
        made = pb.Scalar(list=pb.ScalarList(items=[made]))
    return made


def measured(metrics):
    """Return what sends an update with these metrics."""

    def spoil(header, body):
        for key, value in metrics.items():
            header.metrics[key].CopyFrom(value)

    return update(spoil)


def deep(attacker):
    """Nested by hand: the library does not write what it would not read."""
    data = b"\x08\x01"
    for _ in range(500):
        inner = b"\x0a" + _varint(len(data)) + data
        data = b"\x32" + _varint(len(inner)) + inner
    entry = b"\x0a\x01k\x12" + _varint(len(data)) + data
    header = b"\x3a" + _varint(len(entry)) + entry
    whole = b"\x0a" + _varint(len(header)) + header
    chunk = b"\x2a" + _varint(len(header)) + header
    return one({"one message": attacker.unary("SubmitModelUpdate", whole), "stream": attacker.stream(chunk)})


def _varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def flipped(digest):
    return ("0" if digest[0] != "0" else "1") + digest[1:]


def for_another(attacker):
    with attacker.siege.gate.held() as number:
        found = {}
        for way in ("send", "send_stream"):
            member = attacker.assigned()
            header, body = member.update()
            header.task_id = f"fit-{number}-honest-1"
            found[way] = getattr(member, way)(header, body)
        return one(found)


# --- what the tensors look like ---


def info(change):
    """Return what sends an update whose header says something else of the tensors; ``change`` is given the list of them."""
    return update(lambda header, body: change(header.manifest.tensors.infos))


def inside(change):
    """Return what sends an update whose body alone is another: the header tells of the right one."""
    return update(lambda header, body: header.manifest.tensors.CopyFrom(LEGAL), change=change)


def naming(name, attack):
    """Return an attack whose answer must name a tensor."""

    def named(attacker):
        answer = attack(attacker)
        return answer if name in attacker.said else f"{answer}, but it says {attacker.said!r}"

    return named


def alike(name, change):
    """Return both: an update that looks otherwise, and one whose body alone does."""

    def spoil(parameters):
        return {**parameters, name: change(parameters[name])}

    return together(naming(name, update(change=spoil)), inside(spoil))


def without(name):
    return lambda made: {key: value for key, value in made.items() if key != name}


def renamed(old, new):
    return lambda made: {new if key == old else key: value for key, value in made.items()}


def typed(*names):
    return together(*(info(lambda infos, name=name: setattr(infos[1], "dtype", name)) for name in names))


def twice_named(infos):
    infos.add().CopyFrom(infos[1])


def reversed_order(made):
    return dict(reversed(made.items()))


def filled(name, value, place=...):
    def change(made):
        made[name] = made[name].clone()
        made[name][place] = value
        return made

    return change


def lengths(by):
    """Return what declares another length than is sent."""
    return update(lambda header, body: header.manifest.frames.__setitem__(0, len(body) + by))


def shortened(by):
    def spoil(header, body):
        other = body[:-by] if by > 0 else body + bytes(-by)
        header.manifest.frames[0] = len(other)
        return other

    return update(spoil)


# --- in the name of an honest client ---


def honest(attacker):
    """Return the membership of the honest client that stands at the gate."""
    link = attacker.siege.links["honest-0"]
    member, task = Member(attacker, wire.pack_session(link.session)), link._task
    member.given = pb.GetGlobalModelResponse(task=wire.pack_task(task), manifest=pb.Manifest(shard_bytes=16 << 20))
    return member


def repeatedly(attacker):
    with attacker.siege.gate.held():
        member = honest(attacker)
        header, body = member.update()
        ways = (member.send, member.send_stream)
        with ThreadPoolExecutor(2) as pool:
            answers = {str(n): made.result() for n, made in enumerate([pool.submit(way, header, body) for way in ways])}
        return one({**answers, "again": member.send(header, body), "and again": member.send_stream(header, body)})


def with_odd_metrics(attacker):
    with attacker.siege.gate.held():
        member = honest(attacker)
        header, body = member.update()
        for key, value in (("loss", float("nan")), ("large", 1e308), ("endless", float("inf"))):
            header.metrics[key].real = value
        return member.send(header, body)


def otherwise_after_that(attacker):
    with attacker.siege.gate.held():
        member = honest(attacker)
        header, body = member.update()
        accepted = member.send(header, body)
        other, body = member.update(filled("scale", 5.0))
        heavier, same = member.update()
        heavier.num_examples = 6
        found = {way: getattr(member, way)(other, body) for way in ("send", "send_stream")}
        return one({**found, "weight": member.send(heavier, same)}) if accepted == "OK" else accepted


# --- sizes ---


def in_one_message(size):
    return lambda attacker: attacker.unary("SubmitModelUpdate", bytes(size), timeout=60.0)


def claimed(size):
    """Return what claims a message of a size, and begins it."""

    def attack(attacker):
        opening = PREFACE, frame(SETTINGS), frame(HEADERS, END_HEADERS, 1, headers(SERVICE + "SubmitModelUpdate"))
        with Line(attacker.siege.address, *opening, frame(DATA, 0, 1, message(bytes(1000), size))) as line:
            found = next(f for f in line.frames() if f[0] == HEADERS and f[1] & END_STREAM)
            return "RESOURCE_EXHAUSTED" if b"larger than max" in found[3] or b"grpc-status" in found[3] else str(found)

    return attack


def larger_than_the_model(attacker):
    return update(lambda header, body: header.manifest.frames.__setitem__(0, 90_000_000), ways=("send_stream",))(attacker)


# --- the end ---


def after_the_end(attacker):
    with attacker.task() as member:
        header, body = member.update()
    attacker.siege.finish()
    done = threading.Event()
    for _ in range(200):
        answer = pb.GetServerStatusResponse.FromString(attacker.reply("GetServerStatus"))
        if answer.phase == "finished":
            break
        done.wait(0.01)
    return one({"one message": member.send(header, body), "stream": member.send_stream(header, body)})


ROWS = [
    Row(
        "U1",
        "a round that is over: r−1, 0",
        STALE,
        together(headed(trained_on_round=lambda r: r - 1), headed(trained_on_round=0)),
        remark="with the current round",
    ),
    Row(
        "U2",
        "a round that has not begun: r+1, 2³²+r, 2⁶⁴−1",
        FUTURE,
        together(
            *(headed(trained_on_round=lambda r, by=by: by + r) for by in (1, 1 << 32)), headed(trained_on_round=(1 << 64) - 1)
        ),
    ),
    Row(
        "U3",
        "the same update four times, two of them at once",
        "OK",
        repeatedly,
        remark="counted once; of three at once one gives way, with QUOTA, and may be sent again",
    ),
    Row(
        "U5",
        "another update, and another weight, after one was accepted",
        "ALREADY_EXISTS ROUND_ALREADY_ANSWERED",
        otherwise_after_that,
    ),
    Row("U7", "num_examples 0, −1, −2⁶³", WEIGHT, together(*(headed(num_examples=n) for n in (0, -1, -(1 << 63))))),
    Row("U8", "num_examples 2³⁰+1, 2⁶³−1", WEIGHT, together(*(headed(num_examples=n) for n in ((1 << 30) + 1, (1 << 63) - 1)))),
    Row(
        "U9",
        "a tensor is missing, in header and body, and in the body alone",
        MISMATCH,
        together(naming("scale", update(change=without("scale"))), naming("scale", inside(without("scale")))),
    ),
    Row(
        "U9",
        "a tensor more",
        MISMATCH,
        together(
            *(naming("more", kind(lambda made: {**made, "more": torch.zeros(1)})) for kind in (inside,)),
            naming("more", update(change=lambda made: {**made, "more": torch.zeros(1)})),
        ),
    ),
    Row(
        "U9",
        "a tensor of another name; of another case",
        MISMATCH,
        together(
            *(naming("scale", update(change=renamed("scale", new))) for new in ("other", "Scale", "scale ", "scalе")),
            *(inside(renamed("scale", new)) for new in ("other", "Scale", "scalE")),
        ),
    ),
    Row("U9", "a tensor twice", MISMATCH, naming("output.bias", info(twice_named))),
    Row("U9", "another order", MISMATCH, together(update(change=reversed_order), inside(reversed_order))),
    Row("U10", "shape (1,) for (4,)", MISMATCH, alike("output.bias", lambda t: t[:1])),
    Row("U10", "shape (2, 2) for (4,)", MISMATCH, alike("output.bias", lambda t: t.view(2, 2))),
    Row("U10", "transposed", MISMATCH, alike("hidden.weight", lambda t: t.T.contiguous())),
    Row("U10", "one dimension more in front", MISMATCH, alike("hidden.weight", lambda t: t[None])),
    Row(
        "U10",
        "17 dimensions; 2⁶⁴−1 elements; 2³³ × 2³³",
        MISMATCH,
        together(
            *(
                info(lambda infos, shape=shape: infos[1].shape.__setitem__(slice(None), shape))
                for shape in ([1] * 17, [(1 << 64) - 1], [1 << 33, 1 << 33])
            )
        ),
    ),
    Row(
        "U12",
        "float16, float64 and int32 for float32",
        MISMATCH,
        together(
            *(alike("output.bias", lambda t, kind=kind: t.to(kind)) for kind in (torch.float16, torch.float64, torch.int32))
        ),
    ),
    Row(
        "U13",
        "dtypes `object`, `S4`, `i2,i2`, `>f4`, `M8[s]`, empty, of 10 KiB",
        BAD_DTYPE,
        typed("object", "S4", "i2,i2", ">f4", "M8[s]", "", "f" * 10_240),
    ),
    Row("U14", "a body a byte shorter, and a byte longer, than declared", LENGTH, together(lengths(1), lengths(-1))),
    Row(
        "U14",
        "declared as it is, but the last tensor a byte short; a byte long; empty",
        "INVALID_ARGUMENT MALFORMED",
        together(shortened(1), shortened(-1), update(lambda header, body: header.manifest.frames.__setitem__(0, 0) or b"")),
        usual=False,
        remark="the frame's own header then does not fit its data: the frame is malformed",
    ),
    Row(
        "U15",
        "one NaN, one +Inf, one −Inf",
        NON_FINITE,
        together(
            *(
                naming("hidden.weight", update(change=filled("hidden.weight", v, (127, 389))))
                for v in (float("nan"), float("inf"), -float("inf"))
            )
        ),
    ),
    Row(
        "U15",
        "all NaN; NaN in the 0-dimensional tensor",
        NON_FINITE,
        together(
            update(change=filled("hidden.weight", float("nan"))), naming("scale", update(change=filled("scale", float("nan"))))
        ),
    ),
    Row(
        "U17",
        "values of ±3.4·10³⁸",
        "INVALID_ARGUMENT OUT_OF_RANGE",
        together(*(naming("hidden.weight", update(change=filled("hidden.weight", v))) for v in (3.4e38, -3.4e38))),
        usual=False,
        remark="beyond what the exact sum represents: refused one by one, so no sum can overflow",
    ),
    Row(
        "U18",
        "subnormal numbers and −0.0",
        "OK",
        repeatedly,
        remark="every update of the fleet has some; the digest covers each bit",
    ),
    Row(
        "U20",
        "10,000 metrics",
        "INVALID_ARGUMENT TOO_MANY_FIELDS",
        measured({f"key-{n}": scalar(real=1.0) for n in range(10_000)}),
    ),
    Row(
        "U20",
        "a metric with a key of 100 kB; one that is text, bytes, a list",
        "INVALID_ARGUMENT BAD_METRIC",
        together(
            measured({"k" * 100_000: scalar(real=1.0)}),
            *(measured({"k": value}) for value in (scalar(text="fine"), scalar(raw=b"x"), nested(1))),
        ),
    ),
    Row(
        "U20",
        "a metric with a key of 1 MiB",
        "RESOURCE_EXHAUSTED TOO_LARGE",
        measured({"k" * (1 << 20): scalar(real=1.0)}),
        usual=False,
        remark="the header has at most 1 MiB, or twice that of a task with this model; judged before it is parsed",
    ),
    Row(
        "U20",
        "a metric of no kind; a list in a list",
        "INVALID_ARGUMENT BAD_TYPE",
        together(measured({"k": scalar()}), measured({"k": nested(2)})),
    ),
    Row("U20", "a metric nested 500 deep", "INVALID_ARGUMENT UNDECODABLE", deep),
    Row(
        "U20",
        "metrics that are NaN, infinite, 10³⁰⁸; `loss`",
        "OK",
        with_odd_metrics,
        remark="what is not finite is dropped, and the update kept; `loss` is an ordinary metric",
    ),
    Row("U21", "the task of another client", "PERMISSION_DENIED NOT_SELECTED", for_another),
    Row(
        "U21",
        "a task that there is not; a path; 60,000 characters",
        "PERMISSION_DENIED NOT_SELECTED",
        together(*(headed(task_id=name) for name in ("", "nonsense", "../../x", "t" * 60_000))),
    ),
    Row(
        "U23",
        "the digest of the base missing, or of another model",
        "FAILED_PRECONDITION BASE_MISMATCH",
        together(headed(base_digest=""), headed(base_digest=flipped)),
    ),
    Row(
        "U24",
        "a digest that is wrong in one place",
        "DATA_LOSS CHECKSUM",
        update(lambda header, body: setattr(header.manifest, "digest", flipped(header.manifest.digest))),
        remark="may be sent again",
    ),
    Row(
        "U25",
        "one message of the limit and one byte",
        "RESOURCE_EXHAUSTED",
        in_one_message(LIMIT + 1),
        soon=10.0,
        remark="refused by gRPC itself, from the length in front, and so without a reason; clients know it as TOO_LARGE",
    ),
    Row(
        "U25",
        "one message that says it has 1 GiB",
        "RESOURCE_EXHAUSTED",
        claimed(1 << 30),
        remark="refused from the length in front",
    ),
    Row(
        "U25",
        "a stream that says it has 90 MB",
        "RESOURCE_EXHAUSTED TOO_LARGE",
        larger_than_the_model,
        remark="more than an update of this model can need: before the first chunk",
    ),
    Row(
        "U27",
        "an update when the run is over",
        "FAILED_PRECONDITION ROUND_CLOSED",
        after_the_end,
        soon=4.0,
        usual=False,
        remark="no round takes updates any more; the directive that comes with it is STOP",
    ),
]
