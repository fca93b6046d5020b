"""C: a server that lies, and an honest client."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import torch
from attack import SERVICE, Row

from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import chunks, with_body
from rows.bodies import lz4ed, pickled, wrapped

MODEL = {"w": torch.linspace(-1, 1, 50_000), "scale": torch.tensor(1.0)}
SHARD = 16 << 20


class Liar:
    """A server that answers as it is told.

    Attributes:
        returned: tasks that the client gave back, with its words for why.
    """

    def __init__(self, **answers):
        self.answers, self.returned, self.tries, self.pulls = answers, [], 0, 0
        self.task = pb.Task(id="fit-1-victim", kind=pb.Task.FIT, round=1, base_digest="0" * 64)
        payload = encode(MODEL, Spec.of(MODEL), Safetensors(), SHARD)
        self.manifest, self.body = wire._pack_manifest(payload.manifest), b"".join(payload.body)

    def handlers(self):
        kinds = {
            "RegisterClient": self.register,
            "GetGlobalModel": self.pull,
            "SubmitModelUpdate": self.submit,
            "Heartbeat": self.beat,
        }
        calls = {name: grpc.unary_unary_rpc_method_handler(answer) for name, answer in kinds.items()}
        calls["GetGlobalModelStream"] = grpc.unary_stream_rpc_method_handler(self.stream)
        return grpc.method_handlers_generic_handler(SERVICE.strip("/"), calls)

    def lie(self, name, *args):
        answer = self.answers.get(name)
        return answer(self, *args) if callable(answer) else answer

    def register(self, request, context):
        self.tries += 1
        session = pb.Session(run_id="run", client_id="victim", token="token")
        legal = pb.RegisterClientResponse(
            status=pb.RegisterClientResponse.ACCEPTED,
            session=session,
            codec="safetensors",
            heartbeat_interval=0.2,
            heartbeat_timeout=5.0,
        )
        return _bytes(self.lie("register", legal, context) or legal)

    def pull(self, request, context):
        self.pulls += 1
        if self.pulls > 5:
            return pb.GetGlobalModelResponse(finished=pb.Finished(message="over")).SerializeToString()
        answer = pb.GetGlobalModelResponse(task=self.task, manifest=self.manifest)
        return _bytes(self.lie("pull", answer, context) or with_body(answer, [self.body], len(self.body)))

    def stream(self, request, context):
        rest = self.body[pb.GetGlobalModelRequest.FromString(request).offset :]
        yield from map(_bytes, self.lie("stream", list(chunks(pb.ModelChunk, [rest], len(rest), 1 << 16)), context))

    def submit(self, request, context):
        self.pulls = 10
        outcome = pb.SubmitModelUpdateResponse(
            received=True, outcome=pb.SubmitModelUpdateResponse.ACCEPTED, directive=pb.CONTINUE
        )
        return _bytes(self.lie("submit", outcome, context) or outcome)

    def beat(self, request, context):
        beat = pb.HeartbeatRequest.FromString(request)
        if beat.status == pb.ERROR:
            self.returned.append((beat.task_id, beat.message))
        return _bytes(self.lie("beat", beat, context) or pb.HeartbeatResponse(acknowledged=True, directive=pb.CONTINUE))

    @contextmanager
    def serving(self, credentials=None):
        with ThreadPoolExecutor(8) as pool:
            server = grpc.server(pool, options=[("grpc.max_send_message_length", -1)])
            server.add_generic_rpc_handlers([self.handlers()])
            if credentials is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                port = server.add_secure_port("localhost:0", credentials)
            server.start()
            try:
                yield f"{'127.0.0.1' if credentials is None else 'localhost'}:{port}"
            finally:
                server.stop(0).wait()


class Bait:
    """The honest client, and what becomes of it."""

    def __init__(self, victim, kits):
        self.victim, self.kits, self.liar, self.text = victim, kits, None, ""

    def meet(self, liar, how="plain", credentials=None):
        self.liar = liar
        with liar.serving(credentials) as address:
            self.victim.tell(f"{how} {address}")
            line = self.victim.until("ended", 20.0)
        self.text = line.get("text", "")
        return line["ended"] + (", and gives the task back" if liar.returned else "")


def _bytes(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


def lied(how="plain", **answers):
    """Return what has a client meet a server that lies once."""
    return lambda bait: bait.meet(Liar(**answers), how)


def several(*lies):
    """Return what has a client meet several, and how it ended, if that was the same every time."""

    def attack(bait):
        answers = [lie(bait) for lie in lies]
        return answers[0] if len(set(answers)) == 1 else "; ".join(f"{n}: {answer}" for n, answer in enumerate(answers))

    return attack


def welcomed(**fields):
    def register(liar, legal, context):
        for name, value in fields.items():
            setattr(legal, name, value)
        return legal

    return lied(register=register)


def sent(body, *, change=lambda manifest: None, how="plain", task=lambda task: None):
    """Return what has a client be sent a body in the place of its model."""

    def pull(liar, answer, context):
        data = liar.body if body is None else body
        answer.manifest.frames[:] = [len(data)]
        change(answer.manifest)
        task(answer.task)
        return with_body(answer, [data], len(data))

    return lied(how, pull=pull)


def sized(*shape, how="plain"):
    def change(manifest):
        manifest.tensors.infos[0].shape[:] = shape

    return sent(None, change=change, how=how)


def named(name):
    return sent(None, change=lambda manifest: setattr(manifest.tensors.infos[0], "name", name))


def coded(codec, body=None):
    return sent(body, change=lambda manifest: setattr(manifest, "codec", codec))


def configured(**config):
    def task(task):
        for key, value in config.items():
            task.config[key].CopyFrom(value)

    return sent(None, task=task)


def streamed(arrange):
    """Return what has a client be sent chunks that ``arrange`` makes of the legal ones."""

    def pull(liar, answer, context):
        answer.stream = True
        return answer

    return lied(pull=pull, stream=lambda liar, parts, context: arrange(parts))


def chunk(place, **fields):
    def arrange(parts):
        made = pb.ModelChunk.FromString(parts[place])
        for name, value in fields.items():
            setattr(made, name, value(getattr(made, name)) if callable(value) else value)
        return [*parts[:place], made, *parts[place + 1 :][: len(parts)]] if place >= 0 else [*parts[:-1], made]

    return streamed(arrange)


def stands_still(after):
    """Return what sends so many chunks and then nothing for a while."""

    def arrange(parts):
        yield from parts[:after]
        threading.Event().wait(1.5)

    return streamed(arrange)


def aborted(code, text):
    return lied(pull=lambda liar, answer, context: context.abort(code, text))


def behind(kit, *, mutual=False):
    """Return what has a client with certificates meet a server that shows those of a kit."""

    def attack(bait):
        parts = [(bait.kits[kit] / f"{name}.pem").read_bytes() for name in ("key", "certificate")]
        answer = bait.meet(Liar(), "tls", grpc.ssl_server_credentials([tuple(parts)]))
        return answer if not bait.liar.tries else f"{answer}, and it said something to the server"

    return attack


def plaintext(bait):
    """Have a client with certificates meet a server without: it must say nothing in plaintext."""
    answer = bait.meet(Liar(), "tls")
    return answer if not bait.liar.tries else f"{answer}, and it said something in plaintext"


BACK = ", and gives the task back"
MALFORMED, MISMATCH = f"DecodeError MALFORMED{BACK}", f"DecodeError SCHEMA_MISMATCH{BACK}"
INFO = pb.TensorInfo(name="more", dtype="float32")
ROWS = [
    Row("C-1", "a legal model", "at the end of the run", lied(), remark="so that the rest means something"),
    Row(
        "C-1",
        "a model of 10 MB where the site takes 1 MiB; 2⁴⁷ bytes",
        f"SiteRefused SITE_REFUSED{BACK}",
        several(sized(2_500_000), sized(1 << 45)),
        remark="before memory is allocated",
    ),
    Row("C-1", "12 GiB and no policy of the site", f"DecodeError LENGTH_MISMATCH{BACK}", sized(3 << 30, how="unlimited")),
    Row("C-1", "another model than the manifest tells of", MISMATCH, several(sized(49_999), sized(4, 12_500), named("other"))),
    Row(
        "C-1",
        "tensors with impossible names and shapes",
        f"SchemaMismatch SCHEMA_MISMATCH{BACK}",
        several(named(""), named("x" * 5000), named("a\nb"), sized((1 << 64) - 1), sized(*[1] * 17)),
    ),
    Row(
        "C-1",
        "a bomb; a pickle; text; nothing",
        MALFORMED,
        several(
            coded("safetensors+lz4", wrapped(lz4ed(bytes(8 << 20)), 200_000)), sent(pickled()), sent(b"x" * 100_000), sent(b"")
        ),
    ),
    Row(
        "C-1",
        "codecs that it does not accept: `torch`, lossy, unknown",
        f"CodecRefused NO_COMMON_CODEC{BACK}",
        several(coded("torch", pickled()), coded("int8"), coded("nonsense"), coded("safetensors" + "+lz4" * 10_000)),
    ),
    Row(
        "C-1",
        "a digest that is not the model's",
        f"ChecksumError CHECKSUM{BACK}",
        sent(None, change=lambda manifest: setattr(manifest, "digest", "0" * 64)),
        remark="after three attempts",
    ),
    Row(
        "C-1",
        "a difference to a model that it does not have",
        f"DecodeError BASE_MISMATCH{BACK}",
        sent(None, change=lambda manifest: setattr(manifest, "base", "0" * 64)),
    ),
    Row(
        "C-1",
        "a million tensors",
        "TooLarge TOO_LARGE",
        sent(None, change=lambda m: m.tensors.infos.extend([INFO] * 1_000_000)),
        remark="refused from the length in front, when the client does not know which task it is",
    ),
    Row(
        "C-1",
        "a million frames",
        f"DecodeError LENGTH_MISMATCH{BACK}",
        sent(None, change=lambda m: m.frames.extend([1] * 1_000_000)),
    ),
    Row(
        "C-2",
        "local_epochs of 10⁹, −1, 5.5 · 10³⁰⁰, NaN, text, true, a list",
        f"SiteRefused SITE_REFUSED{BACK}",
        several(
            *(
                configured(local_epochs=value)
                for value in (
                    pb.Scalar(integer=10**9),
                    pb.Scalar(integer=-1),
                    pb.Scalar(real=5.5e300),
                    pb.Scalar(real=float("nan")),
                    pb.Scalar(text="5"),
                    pb.Scalar(boolean=True),
                    pb.Scalar(list=pb.ScalarList(items=[pb.Scalar(integer=1)])),
                )
            )
        ),
        remark="by the site's own policy",
    ),
    Row(
        "C-2",
        "a key that the site does not know; 10,000 keys",
        f"SiteRefused SITE_REFUSED{BACK}",
        several(
            configured(surprise=pb.Scalar(integer=1)), configured(**{f"key-{n}": pb.Scalar(integer=1) for n in range(10_000)})
        ),
    ),
    Row(
        "C-2",
        "a value of no kind; a list in a list",
        "DecodeError BAD_TYPE",
        several(
            configured(local_epochs=pb.Scalar()),
            configured(local_epochs=pb.Scalar(list=pb.ScalarList(items=[pb.Scalar(list=pb.ScalarList())]))),
        ),
    ),
    Row("C-3", "a welcome that is no message", "DecodeError UNDECODABLE", lied(register=lambda *_: b"\xff" * 40)),
    Row(
        "C-3",
        "beats −1, 0, 10⁻³⁰⁰, NaN and infinitely many seconds apart",
        "DecodeError BAD_TYPE",
        several(*(welcomed(heartbeat_interval=value) for value in (-1.0, 0.0, 1e-300, float("nan"), float("inf")))),
    ),
    Row(
        "C-3",
        "attempts spread over infinitely many seconds; NaN",
        "DecodeError BAD_TYPE",
        several(*(welcomed(retry_spread=value) for value in (float("inf"), float("nan")))),
    ),
    Row(
        "C-3",
        "a codec to send with that it does not know",
        "CodecRefused NO_COMMON_CODEC",
        several(welcomed(codec="torch"), welcomed(codec="int8"), welcomed(codec="")),
    ),
    Row("C-3", "an answer that is no message", "DecodeError UNDECODABLE", lied(pull=lambda *_: b"\xff" * 40)),
    Row(
        "C-3",
        "an answer of no kind; a task of no kind",
        "ProtocolError UNKNOWN_ENUM",
        several(lied(pull=lambda *_: b"\x28\x01"), sent(None, task=lambda task: setattr(task, "kind", 99))),
    ),
    Row(
        "C-3",
        "an answer with a million fields before the model",
        "DecodeError UNDECODABLE",
        lied(pull=lambda *_: b"\xf8\x7f\x01" * 1_000_000 + b"\x7a\x00"),
    ),
    Row(
        "C-3",
        "an outcome, a directive that there is not",
        f"ProtocolError UNKNOWN_ENUM{BACK}",
        several(
            lied(submit=lambda *_: pb.SubmitModelUpdateResponse(received=True, outcome=99, directive=pb.CONTINUE)),
            lied(submit=lambda *_: pb.SubmitModelUpdateResponse(received=True, outcome=1, directive=99)),
        ),
    ),
    Row(
        "C-3",
        "an error with a traceback and control characters",
        "RemoteError INTERNAL",
        aborted(grpc.StatusCode.INTERNAL, "x\n\x1b[31mTraceback" * 100),
    ),
    Row("C-3", "a call that it does not have", "ProtocolError PROTOCOL_ORDER", aborted(grpc.StatusCode.UNIMPLEMENTED, "no")),
    Row(
        "C-3",
        "heartbeats that are no message; that go to infinity",
        "at the end of the run",
        several(
            lied(beat=lambda *_: b"\xff" * 40),
            lied(beat=lambda *_: pb.HeartbeatResponse(directive=99)),
            lied(beat=lambda *_: pb.HeartbeatResponse(heartbeat_interval=float("inf"), directive=pb.CONTINUE)),
        ),
        remark="a heartbeat that fails is one that is missed",
    ),
    Row(
        "C-4",
        "chunks repeated, left out, swapped, misnumbered",
        f"ProtocolError BAD_SEQUENCE{BACK}",
        several(
            streamed(lambda parts: [parts[0], *parts]),
            streamed(lambda parts: [parts[0], *parts[2:]]),
            streamed(lambda parts: [parts[0], parts[2], parts[1], parts[3]]),
            chunk(0, chunk_index=(1 << 64) - 1),
            chunk(0, chunk_index=1),
        ),
    ),
    Row(
        "C-4",
        "a stream that ends early; one of nothing",
        f"Incomplete INCOMPLETE{BACK}",
        several(streamed(lambda parts: parts[:-1]), streamed(lambda parts: [])),
        remark="it asks for the rest for as long as its patience lasts",
    ),
    Row(
        "C-4",
        "a byte too many; one too few; the end too early",
        f"ProtocolError LENGTH_MISMATCH{BACK}",
        several(
            chunk(-1, chunk_data=lambda data: data + b"x"),
            chunk(-1, chunk_data=lambda data: data[:-1]),
            chunk(1, is_final_chunk=True),
        ),
    ),
    Row("C-4", "a chunk behind the last", f"ProtocolError PROTOCOL_ORDER{BACK}", streamed(lambda parts: [*parts, parts[-1]])),
    Row(
        "C-4",
        "chunks of one byte, of none, of another number",
        f"ProtocolError BAD_CHUNK_SIZE{BACK}",
        several(
            streamed(lambda parts: (pb.ModelChunk(chunk_index=n, total_chunks=9, chunk_data=b"x") for n in range(10**6))),
            streamed(lambda parts: (pb.ModelChunk(chunk_index=n, total_chunks=9) for n in range(10**6))),
            chunk(0, total_chunks=7),
        ),
    ),
    Row(
        "C-4",
        "a chunk of 4 MiB and a byte",
        f"ProtocolError TOO_LARGE{BACK}",
        streamed(lambda parts: [pb.ModelChunk(total_chunks=1, is_final_chunk=True, chunk_data=bytes((4 << 20) + 1))]),
    ),
    Row("C-4", "a checksum that is wrong in one bit", f"ChecksumError CHECKSUM{BACK}", chunk(0, crc32c=lambda crc: crc ^ 1)),
    Row(
        "C-4",
        "streams that stand still behind each first chunk",
        "at the end of the run",
        stands_still(1),
        remark="it asks for the rest each time, and has the whole at last",
    ),
    Row("C-4", "streams that never bring anything", f"Incomplete INCOMPLETE{BACK}", stands_still(0)),
    Row(
        "C-6",
        "a certificate for another host; of another authority",
        "Unauthenticated UNAUTHENTICATED",
        several(behind("elsewhere"), behind("foreign")),
        remark="at once, and nothing is said",
    ),
    Row(
        "C-6",
        "plaintext instead of TLS",
        "ConnectionLost CONNECTION_LOST",
        plaintext,
        remark="may be a damaged handshake: tried again for as long as its patience lasts; never in plaintext",
    ),
]
