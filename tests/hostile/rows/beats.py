"""B: heartbeats and status."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

from attack import Row, _path, each, one

from fedcore.protos import fedcore_pb2 as pb

NOT_REGISTERED = "FAILED_PRECONDITION NOT_REGISTERED"


def strange(**fields):
    def attack(attacker):
        session = pb.Session(run_id=attacker.siege.run_id, client_id="stranger", token="0" * 32)
        for name, value in fields.items():
            setattr(session, name, value)
        return attacker.unary("Heartbeat", pb.HeartbeatRequest(session=session, status=pb.IDLE))

    return attack


def beaten(**fields):
    return lambda attacker: attacker.member().beat(**fields)


def still_told(**fields):
    """Return what beats, and whether the status still tells of the client what it said."""

    def attack(attacker):
        member = attacker.member()
        answer = member.beat(**fields)
        status = pb.GetServerStatusResponse.FromString(attacker.reply("GetServerStatus"))
        there = [client.client_id for client in status.clients]
        return answer if member.name in there else f"{answer}, and the status lost it: {there}"

    return attack


def never_ends(attacker):
    """Take a task and beat; rounds go on without it, and it is told so."""
    with attacker.task() as member:
        task = member.given.task.id
    with attacker.siege.gate.held():
        request = pb.HeartbeatRequest(session=member.session, status=pb.TRAINING, task_id=task)
        answer = pb.HeartbeatResponse.FromString(attacker.reply("Heartbeat", request))
    return pb.Directive.Name(answer.directive)


def of_another(attacker):
    """Give the task of an honest client back."""
    with attacker.siege.gate.held() as number:
        return attacker.member().beat(status=pb.ERROR, task_id=f"fit-{number}-honest-0", message="it fails")


def hammers(attacker):
    """Beat as fast as it goes; returns what the last ones were told."""
    member = attacker.member()
    request = pb.HeartbeatRequest(session=member.session, status=pb.IDLE).SerializeToString()
    beat = attacker.channel.unary_unary(_path("Heartbeat"))
    calls = [beat.future(request, timeout=10.0) for _ in range(1000)]
    answers = [attacker.outcome(call.result) for call in calls]
    borne = answers.count("OK")
    return one(dict(enumerate(each for each in answers if each != "OK"))) if borne < 100 else f"{borne} of 1000"


ROWS = [
    Row(
        "B1",
        "a session that nobody was given",
        NOT_REGISTERED,
        each(strange(), strange(client_id="../x"), strange(token="t" * 10_000)),
        remark="the reason tells the client to register",
    ),
    Row(
        "B1",
        "no session at all",
        "FAILED_PRECONDITION RUN_CHANGED",
        lambda attacker: attacker.unary("Heartbeat", pb.HeartbeatRequest(status=pb.IDLE)),
        remark="no run is the wrong run; this reason, too, tells the client to register",
    ),
    Row("B2", "a status that is not known; none", "INVALID_ARGUMENT UNKNOWN_ENUM", each(beaten(status=99), beaten(status=0))),
    Row(
        "B2",
        "texts of 1 MiB",
        "RESOURCE_EXHAUSTED TOO_LARGE",
        each(beaten(message="x" * (1 << 20)), beaten(task_id="x" * (1 << 20))),
    ),
    Row(
        "B3",
        "step 2⁶⁴−1; 2⁶³ of 1; 1 of 0; round 2⁶⁴−1",
        "OK",
        each(
            still_told(current_step=(1 << 64) - 1),
            still_told(current_step=1 << 63, total_steps=1),
            still_told(current_step=1),
            still_told(current_round=(1 << 64) - 1),
        ),
        remark="taken as said, and shown in the status only",
    ),
    Row(
        "B4",
        "1,000 beats as fast as they go",
        "RESOURCE_EXHAUSTED RATE",
        hammers,
        soon=10.0,
        remark="beyond fifty in a row, and ten a second, `Limits.beats_per_second`",
    ),
    Row(
        "B7",
        "beats without end, and no update",
        "ABORT_TASK",
        never_ends,
        remark="rounds end at their target or deadline without it; that it is for the living, too, the policy's tests show",
    ),
    Row("B9", "the task of another client given back", "OK", of_another, remark="and nothing happens: its own client goes on"),
]
