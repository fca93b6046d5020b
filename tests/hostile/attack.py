"""What an attacker has: raw calls, memberships of its own, and legal updates to spoil."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import grpc
from besieged import SOON
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from model import trained

from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.messages import PROTOCOL_VERSION
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import chunks, with_body

SERVICE = "/fedcore.v1.FederatedLearningService/"
CHUNK = 1 << 16
_names = count(1)


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        id: the kind of attack.
        what: what is sent.
        answer: what comes back: status and reason.
        send: sends it, and returns what came back.
        remark: why the answer is not the usual one, or what it means.
        usual: whether the answer is what the list of attacks asks for; if not, ``remark`` says why it is right.
        soon: seconds within which each answer comes.
    """

    id: str
    what: str
    answer: str
    send: Callable
    remark: str = ""
    usual: bool = True
    soon: float = SOON


class Attacker:
    """Sends what no client would.

    Args:
        siege: the server and its fleet.
        kit: the name of the certificate that it has, if there are any.

    Attributes:
        refused: how many calls the server refused with a reason.
        longest: seconds that the slowest call took since this was last set to 0.
        said: what it said of the last one.
    """

    def __init__(self, siege, kit="honest-0"):
        self.siege, self.kit, self.refused, self.said, self.details = siege, kit, 0, "", {}
        self.longest = 0.0
        self.channel = siege.channel(kit)

    # --- calls ---

    def unary(self, method, message=b"", *, timeout=10.0, **more):
        """Make a call of one message; returns status and reason."""
        return self.outcome(lambda: self.reply(method, message, timeout=timeout, **more))

    def reply(self, method, message=b"", *, timeout=10.0, **more):
        """Make a call of one message, and return the answer's bytes."""
        return self.channel.unary_unary(_path(method))(_bytes(message), timeout=timeout, **more)

    def stream(self, *messages, method="SubmitModelUpdateStream", timeout=10.0):
        """Send a stream of messages."""
        return self.flow(messages, method=method, timeout=timeout)

    def flow(self, messages, method="SubmitModelUpdateStream", timeout=10.0):
        """Send a stream of as many messages as somebody reads."""
        return self.outcome(lambda: self.channel.stream_unary(_path(method))(map(_bytes, messages), timeout=timeout))

    def down(self, message, method="GetGlobalModelStream", timeout=10.0):
        """Ask for a stream, and read it to its end."""
        return self.outcome(lambda: list(self.channel.unary_stream(_path(method))(_bytes(message), timeout=timeout)))

    def outcome(self, call):
        """Return what came back: status and reason."""
        began = time.monotonic()
        try:
            call()
        except grpc.RpcError as error:
            self.said, self.details = error.details() or "", {}
            reason = self._reason(error)
            self.refused += reason != ""
            return f"{error.code().name} {reason}".strip()
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        return "OK"

    def _reason(self, error):
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == "fedcore":
                self.details = dict(info.metadata)
                return info.reason
        return ""

    # --- memberships ---

    def registration(self, client_id, **fields):
        """Return a legal registration with some fields changed."""
        legal = {"protocol_version": PROTOCOL_VERSION, "accepts": ["safetensors"], "instance": f"instance-{next(_names)}"}
        return pb.RegisterClientRequest(client_id=client_id, **{**legal, **fields})

    def register(self, client_id, **fields):
        return self.unary("RegisterClient", self.registration(client_id, **fields))

    def member(self, name=""):
        """Join as a client of one's own."""
        name = name or f"extra-{next(_names)}"
        data = self.reply("RegisterClient", self.registration(name))
        return Member(self, pb.RegisterClientResponse.FromString(data).session)

    @contextmanager
    def task(self):
        """Join, and get a task in a round that stays open meanwhile."""
        with self.siege.gate.held():
            yield self.assigned()

    def assigned(self):
        """Join, and get a task in the round that is open."""
        member = self.member()
        member.pull()
        return member


class Member:
    """A membership of the attacker's own."""

    def __init__(self, attacker, session):
        self.attacker, self.session, self.given = attacker, session, None

    @property
    def name(self):
        return self.session.client_id

    def pull(self, wait=5.0):
        request = pb.GetGlobalModelRequest(session=self.session, wait_seconds=wait)
        self.given = pb.GetGlobalModelResponse.FromString(self.attacker.reply("GetGlobalModel", request))
        assert self.given.HasField("task"), self.given
        return self.given.task

    def fetch(self, **fields):
        """Ask for the body of the task as a stream."""
        total = len(self.given.body) if self.given else 1
        legal = {"task_id": self.given.task.id if self.given else "", "total_bytes": total}
        return self.attacker.down(pb.GetGlobalModelRequest(session=self.session, **{**legal, **fields}))

    def beat(self, **fields):
        return self.attacker.unary("Heartbeat", pb.HeartbeatRequest(session=self.session, **{"status": pb.IDLE, **fields}))

    def update(self, change=None, *, codec=None):
        """Return a legal header and body of an update; ``change`` may change the tensors before they are encoded."""
        task = self.given.task
        made, _ = trained(self.attacker.siege.gate.parameters, task.round, 0)
        made = change(made) if change else made
        return self.header(encode(made, Spec.of(made), codec or Safetensors(), self.given.manifest.shard_bytes))

    def header(self, payload):
        task = self.given.task
        header = pb.UpdateHeader(
            session=self.session, task_id=task.id, trained_on_round=task.round, attempt_id=f"attempt-{next(_names)}",
            base_digest=task.base_digest, num_examples=5, manifest=wire._pack_manifest(payload.manifest),
        )  # fmt: skip
        return header, b"".join(payload.body)

    def send(self, header, body):
        """Send an update in one message."""
        whole = with_body(pb.SubmitModelUpdateRequest(header=header), [body], len(body))
        return self.attacker.unary("SubmitModelUpdate", whole)

    def send_stream(self, header, body, total=None):
        """Send an update as a stream of chunks."""
        return self.attacker.stream(first(header), *cut(body))


def first(header):
    """Return the first message of an upload."""
    return pb.ModelUpdateChunk(header=header)


def cut(body, size=CHUNK):
    """Return the chunks of an upload."""
    return list(chunks(pb.ModelUpdateChunk, [body], len(body), size))


def opened(chunk):
    """Return a chunk as a message, to be changed."""
    return pb.ModelUpdateChunk.FromString(chunk)


def update(spoil=lambda header, body: None, *, change=None, codec=None, ways=("send", "send_stream")):
    """Return what sends an update that ``spoil`` or ``change`` has spoiled, in one message and as a stream, and what came back.

    ``spoil`` changes the header, and returns another body or None.
    """

    def attack(attacker):
        with attacker.siege.gate.held():
            found = {}
            for way in ways:
                member = attacker.assigned()
                header, body = member.update(change, codec=codec)
                other = spoil(header, body)
                found[way] = getattr(member, way)(header, body if other is None else other)
        return one(found)

    return attack


def one(found):
    """Return what came back, if it was the same every time."""
    answers = set(found.values())
    return answers.pop() if len(answers) == 1 else "; ".join(f"{way}: {answer}" for way, answer in found.items())


def each(*attacks):
    """Return what makes several attacks, and what came back."""

    def attack(attacker):
        return one({str(number): make(attacker) for number, make in enumerate(attacks)})

    return attack


def together(*attacks):
    """Return what makes several attacks in one round, and what came back."""

    def attack(attacker):
        with attacker.siege.gate.held():
            return each(*attacks)(attacker)

    return attack


def siege_it(attacker, rows):
    """Make the attacks one after the other; returns what is not as it should be."""
    found = []
    for row in rows:
        attacker.longest = 0.0
        try:
            answer = row.send(attacker)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"[:500]
        if answer != row.answer:
            found.append(f"{row.id} {row.what}: {answer} instead of {row.answer} ({attacker.said[:120]})")
        if attacker.longest > row.soon + attacker.siege.late:
            found.append(f"{row.id} {row.what}: answered after {attacker.longest:.1f} s")
        try:
            serving = attacker.siege.is_serving()
        except grpc.RpcError as error:
            serving = error.code().name
        if serving is not True:
            found.append(f"{row.id} {row.what}: behind it the next call is not answered: {serving}")
    if (counted := attacker.siege.counted()) < attacker.refused:
        found.append(f"{counted} refusals were counted, of {attacker.refused}")
    if (told := attacker.siege.warnings()) > counted:
        found.append(f"{told} refusals in the log, of {counted}")
    return found


def _path(method):
    return method if method.startswith("/") else SERVICE + method


def _bytes(message):
    return message if isinstance(message, bytes) else message.SerializeToString()
