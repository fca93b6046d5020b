"""R6, B9 and the rest of X1: where who somebody is comes from certificates."""

from attack import Row, each, one
from frames import PREFACE, SETTINGS, Line, frame

from fedcore.protos import fedcore_pb2 as pb

MISMATCH = "PERMISSION_DENIED IDENTITY_MISMATCH"


def with_the_session_of_another(attacker):
    from fedcore.transports.grpc import wire

    session = wire.pack_session(attacker.siege.links["honest-0"].session)
    header = pb.UpdateHeader(session=session, task_id="fit-1-honest-0", num_examples=1)
    found = {
        "GetGlobalModel": attacker.unary("GetGlobalModel", pb.GetGlobalModelRequest(session=session)),
        "Heartbeat": attacker.unary("Heartbeat", pb.HeartbeatRequest(session=session, status=pb.IDLE)),
        "SubmitModelUpdate": attacker.unary("SubmitModelUpdate", pb.SubmitModelUpdateRequest(header=header)),
        "SubmitModelUpdateStream": attacker.stream(pb.ModelUpdateChunk(header=header)),
        "GetGlobalModelStream": attacker.down(
            pb.GetGlobalModelRequest(session=session, task_id="fit-1-honest-0", total_bytes=1)
        ),
    }
    return one(found)


def sees(attacker):
    attacker.member("mallory")
    status = pb.GetServerStatusResponse.FromString(attacker.reply("GetServerStatus"))
    return ", ".join(client.client_id for client in status.clients)


def commands(attacker):
    acts = (pb.ControlRequest.STOP, pb.ControlRequest.PAUSE, pb.ControlRequest.EVICT)
    return one({str(act): attacker.unary("Control", pb.ControlRequest(act=act, client_id="honest-0")) for act in acts})


def plaintext(attacker):
    with Line(attacker.siege.address, PREFACE, frame(SETTINGS)) as line:
        return "closed" if line.closed(20.0) else "open"


ROWS = [
    Row(
        "R6",
        "a certificate for one client, and the registration of another",
        MISMATCH,
        each(*(lambda attacker, name=name: attacker.register(name) for name in ("honest-0", "nobody", "Mallory", "mallory\0"))),
        remark="before the name itself is judged",
    ),
    Row("R6", "a certificate for one client, and the session of another, in every call", MISMATCH, with_the_session_of_another),
    Row("R6", "a client that gives orders", "PERMISSION_DENIED PERMISSION_DENIED", commands),
    Row(
        "B9",
        "the status, asked for by a client",
        "mallory",
        sees,
        remark="it sees itself alone; without certificates nobody is known, and all is shown",
    ),
    Row("X1", "plaintext to a port with TLS", "closed", plaintext),
]
