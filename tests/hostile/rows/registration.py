"""R: who registers, and how."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

import unicodedata

from attack import Row, each

from fedcore.protos import fedcore_pb2 as pb

NO_NAME = "INVALID_ARGUMENT BAD_CLIENT_ID"
NO_CODEC = "FAILED_PRECONDITION NO_COMMON_CODEC"
GARBAGE = b"\xff" * 40
UNARY = ("RegisterClient", "GetGlobalModel", "SubmitModelUpdate", "GetServerStatus", "Heartbeat", "GetAuditLog", "Control")
PATHS = ("../../outside", "/abs/outside", "a/b", "..", ".", "a\0b", "a\nb", "-rf", "")
LOOKALIKES = ("hоnest-0", "ｈonest-0", "hónest-0", unicodedata.normalize("NFD", "hónest-0"), "honest\u200b-0", "honest-0 ")


def named(*names):
    return each(*(lambda attacker, name=name: attacker.register(name) for name in names))


def registered(**fields):
    return lambda attacker: attacker.register("extra", **fields)


def twice(attacker):
    older = attacker.member("extra-twice")
    newer = attacker.member("extra-twice")
    assert newer.session.token != older.session.token
    assert newer.beat() == "OK"
    return older.beat()


def same_process(attacker):
    sessions = [
        pb.RegisterClientResponse.FromString(
            attacker.reply("RegisterClient", attacker.registration("extra-again", instance="one"))
        ).session.token
        for _ in range(2)
    ]
    return "OK" if len(set(sessions)) == 1 else "two sessions"


def of_run(run_id):
    def attack(attacker):
        member = attacker.member()
        member.session.run_id = run_id
        return member.beat()

    return attack


def garbage(attacker):
    found = {method: attacker.unary(method, GARBAGE) for method in UNARY}
    found["upload"] = attacker.stream(GARBAGE)
    found["download"] = attacker.down(GARBAGE)
    return found.popitem()[1] if len(set(found.values())) == 1 else str(found)


def unknown_fields(attacker):
    unknown = b"\xfa\x7f\x03abc" + b"\xf8\x7f\x01"  # numbers 2047: some bytes, and an integer
    return attacker.unary("RegisterClient", attacker.registration("extra").SerializeToString() + unknown)


def many_parts(attacker):
    return attacker.register("extra", codec="safetensors" + "+lz4" * 10_000)


ROWS = [
    Row("R1", "an empty client_id", NO_NAME, named("")),
    Row("R2", "a client_id of 65 characters", NO_NAME, named("a" * 65)),
    Row(
        "R2",
        "a client_id of 1 MiB",
        "RESOURCE_EXHAUSTED TOO_LARGE",
        named("a" * (1 << 20)),
        usual=False,
        remark="a registration has at most 64 KiB, which is judged before it is parsed",
    ),
    Row("R3", "client_ids that are paths, or options, or hold control characters", NO_NAME, named(*PATHS)),
    Row(
        "R3",
        "the client_id `con`",
        "OK",
        named("con"),
        usual=False,
        remark="an ordinary name: no name ever becomes a path, here or on Windows",
    ),
    Row("R5", "look-alikes of a registered id: other scripts, NFC, NFD, invisible characters", NO_NAME, named(*LOOKALIKES)),
    Row(
        "R7",
        "the same client_id from a second process; then a beat of the first",
        "FAILED_PRECONDITION FENCED",
        twice,
        remark="the newer process has a new session, the older is fenced",
    ),
    Row("R7", "the same client_id from the same process, twice", "OK", same_process, remark="it has the same session"),
    Row(
        "R9",
        "protocol_version 0 and 2³²−1",
        "FAILED_PRECONDITION PROTOCOL_VERSION",
        each(registered(protocol_version=0), registered(protocol_version=(1 << 32) - 1)),
        remark="the text names the one spoken",
    ),
    Row(
        "R10",
        "codecs unknown, empty, lossy, trusted only, a path",
        NO_CODEC,
        each(*(registered(codec=name) for name in ("nonsense", "+", "int8", "torch", "../torch", "lz4+safetensors"))),
    ),
    Row("R10", "no codec that it accepts", NO_CODEC, registered(accepts=[])),
    Row("R10", "a codec of 10,000 parts", NO_CODEC, many_parts),
    Row("R10", "1,000 codecs accepted, none known", NO_CODEC, registered(accepts=[f"codec-{n}" for n in range(1000)])),
    Row(
        "R10",
        "10,000 codecs accepted",
        "RESOURCE_EXHAUSTED TOO_LARGE",
        registered(accepts=[f"codec-{n}" for n in range(10_000)]),
        usual=False,
        remark="a registration has at most 64 KiB; of the list nothing is kept",
    ),
    Row("R10", "a process with a name of 65 characters", "INVALID_ARGUMENT PROTOCOL_ORDER", registered(instance="i" * 65)),
    Row("R12", "the session of another run", "FAILED_PRECONDITION RUN_CHANGED", of_run("run-0123456789ab")),
    Row("R12", "a session without a run", "FAILED_PRECONDITION RUN_CHANGED", of_run("")),
    Row("R13", "bytes that are no message, to every call", "INVALID_ARGUMENT UNDECODABLE", garbage),
    Row("R15", "unknown fields", "OK", unknown_fields, remark="ignored: a newer peer may have sent them"),
    Row(
        "R15",
        "a value of an enum that is not known",
        "INVALID_ARGUMENT UNKNOWN_ENUM",
        each(lambda attacker: attacker.member().beat(status=99), lambda a: a.unary("Control", pb.ControlRequest(act=99))),
    ),
]
