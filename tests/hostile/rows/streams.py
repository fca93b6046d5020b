"""K: uploads in chunks."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

import threading
from itertools import chain

import grpc
from attack import Row, _path, cut, each, first, opened
from besieged import STALL
from model import NBYTES

from fedcore.protos import fedcore_pb2 as pb
from fedcore.testing import Proxy
from fedcore.transports.grpc.framing import LARGEST_CHUNK

ORDER, INCOMPLETE = "INVALID_ARGUMENT PROTOCOL_ORDER", "INVALID_ARGUMENT INCOMPLETE"
SEQUENCE, SIZE, LENGTH = "INVALID_ARGUMENT BAD_SEQUENCE", "INVALID_ARGUMENT BAD_CHUNK_SIZE", "INVALID_ARGUMENT LENGTH_MISMATCH"
TOO_LARGE, STALLED = "RESOURCE_EXHAUSTED TOO_LARGE", "DEADLINE_EXCEEDED STALLED_STREAM"
RESETS = 60


def sent(arrange):
    """Return what sends the messages that ``arrange`` makes of a legal header and its chunks."""

    def attack(attacker):
        with attacker.task() as member:
            header, body = member.update()
            return attacker.flow(arrange(first(header), cut(body)))

    return attack


def changed(place, **fields):
    """Return what sends a stream in which one chunk is changed."""

    def arrange(header, parts):
        chunk = opened(parts[place])
        for name, value in fields.items():
            setattr(chunk, name, value(getattr(chunk, name)) if callable(value) else value)
        parts[place] = chunk.SerializeToString()
        return [header, *parts]

    return sent(arrange)


def in_order(*order):
    return sent(lambda header, parts: [header, *(parts[place] for place in order)])


def tiny(data):
    """Return what sends a million chunks of a size that is not allowed, or as many as are read."""

    def arrange(header, parts):
        small = (pb.ModelUpdateChunk(chunk_index=n, total_chunks=1_000_000, chunk_data=data) for n in range(1_000_000))
        return chain([header], small)

    return sent(arrange)


def declared(total, *, data=True):
    """Return what declares another length in its header."""

    def arrange(header, parts):
        header.header.manifest.frames[:] = [total]
        return [header, *parts] if data else [header]

    return sent(arrange)


def many_frames(header, parts):
    header.header.manifest.frames[:] = [1] * 1_000_000
    return [header, *parts]


def too_many_tensors(header, parts):
    header.header.manifest.tensors.MergeFromString(b"\x0a\x00" * 1_000_000)
    return [header, *parts]


def too_large_a_chunk(header, parts):
    header.header.manifest.frames[:] = [NBYTES + 1000]
    return [header, pb.ModelUpdateChunk(total_chunks=1, is_final_chunk=True, chunk_data=bytes(LARGEST_CHUNK + 1))]


def stalls(after):
    """Return what sends the header and so many chunks, and then nothing."""

    def attack(attacker):
        with attacker.task() as member:
            header, body = member.update()
            over = threading.Event()

            def slowly():
                yield first(header)
                yield from cut(body)[:after]
                over.wait(10 * STALL)

            try:
                return attacker.flow(slowly())
            finally:
                over.set()

    return attack


def begins_nothing(attacker):
    over = threading.Event()
    try:
        return attacker.flow(part for part in [b""] if over.wait(10 * STALL) and part)
    finally:
        over.set()


def trickles(attacker):
    """Send what is legal at a byte a second."""
    with attacker.task() as member, Proxy(attacker.siege.address) as proxy:
        header, body = member.update()
        with grpc.insecure_channel(proxy.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            grpc.channel_ready_future(channel).result(10.0)
            begun = threading.Event()

            def slowly():
                yield first(header)
                begun.wait(10.0)
                yield from cut(body)

            call = channel.stream_unary(_path("SubmitModelUpdateStream")).future(map(_raw, slowly()), timeout=10.0)
            call.initial_metadata()
            proxy.bandwidth(1.0, direction="up")
            begun.set()
            return attacker.outcome(call.result)


def _raw(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


def at_once(attacker):
    """Begin twelve uploads for one task, each an attempt of its own, and end none."""
    with attacker.task() as member:
        header, body = member.update()
        over = threading.Event()

        def begun(attempt):
            own = pb.UpdateHeader.FromString(header.SerializeToString())
            own.attempt_id = f"attempt-{attempt}"
            yield first(own).SerializeToString()
            yield cut(body)[0]
            over.wait(10.0)

        start = attacker.channel.stream_unary(_path("SubmitModelUpdateStream"))
        calls = [start.future(begun(attempt), timeout=10.0) for attempt in range(12)]
        try:
            return "; ".join(sorted({attacker.outcome(call.result) for call in calls}))
        finally:
            over.set()


def broken_off(attacker):
    """Break uploads off in the middle, by RST_STREAM and by TCP's RST, and look at what is left."""
    siege = attacker.siege
    before = siege.server.files
    with attacker.task() as member:
        header, body = member.update()
        for attempt in range(RESETS):
            header.attempt_id = f"broken-{attempt}"
            over = threading.Event()

            def begun(over=over):
                yield first(header).SerializeToString()
                yield cut(body)[0]
                over.wait(10.0)

            call = attacker.channel.stream_unary(_path("SubmitModelUpdateStream")).future(begun())
            call.initial_metadata()
            call.cancel()
            over.set()
        with Proxy(siege.address) as proxy:
            for attempt in range(RESETS // 4):
                header.attempt_id = f"reset-{attempt}"
                proxy.cut(100_000, "reset", times=1, direction="up")
                with grpc.insecure_channel(proxy.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                    start = channel.stream_unary(_path("SubmitModelUpdateStream"))
                    call = start.future(map(_raw, [first(header), *cut(body)]), timeout=10.0)
                    found = attacker.outcome(call.result)
                    if not found.startswith("UNAVAILABLE"):
                        return found
    pause = threading.Event()
    for _ in range(250):
        left = [path.name for path in siege.folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
        if not left and siege.server.files <= before + 2:
            return "nothing left"
        pause.wait(0.02)
    return f"{left} and {siege.server.files} descriptors instead of {before}"


ROWS = [
    Row("K1", "no message at all", "INVALID_ARGUMENT EMPTY_STREAM", lambda attacker: attacker.stream()),
    Row(
        "K2",
        "a chunk before the header; the header last",
        ORDER,
        each(sent(lambda header, parts: parts), sent(lambda header, parts: [*parts, header])),
    ),
    Row("K2", "two headers", ORDER, sent(lambda header, parts: [header, header, *parts])),
    Row(
        "K2",
        "data in the message with the header; a header in a chunk",
        ORDER,
        each(
            sent(lambda header, parts: [pb.ModelUpdateChunk(header=header.header, chunk_data=b"x")]),
            sent(
                lambda header, parts: [
                    header,
                    opened(parts[0]).SerializeToString()[:0]
                    + pb.ModelUpdateChunk(header=header.header, chunk_data=b"x").SerializeToString(),
                ]
            ),
        ),
    ),
    Row("K2", "an empty first message", ORDER, lambda attacker: attacker.stream(b"")),
    Row(
        "K3",
        "the header alone; all chunks but the last",
        INCOMPLETE,
        each(sent(lambda header, parts: [header]), sent(lambda header, parts: [header, *parts[:-1]])),
        remark="may be sent again",
    ),
    Row(
        "K3",
        "the last chunk does not say that it is",
        SIZE,
        changed(-1, is_final_chunk=False),
        usual=False,
        remark="there is no trailer: the last chunk says that it is the last",
    ),
    Row(
        "K4",
        "a chunk twice; one left out; 2⁶⁴−1, 2³¹ and 1 as the first number",
        SEQUENCE,
        each(in_order(0, 0, 1, 2, 3), in_order(0, 2, 3), *(changed(0, chunk_index=n) for n in ((1 << 64) - 1, 1 << 31, 1))),
    ),
    Row("K5", "two chunks swapped", SEQUENCE, in_order(0, 2, 1, 3)),
    Row(
        "K7",
        "a byte more than declared; one less",
        LENGTH,
        each(changed(-1, chunk_data=lambda data: data + b"x"), changed(-1, chunk_data=lambda data: data[:-1])),
    ),
    Row("K7", "a chunk behind the last", ORDER, sent(lambda header, parts: [header, *parts, parts[-1]])),
    Row(
        "K7",
        "another number of chunks than there are; the end too early",
        SIZE,
        each(changed(0, total_chunks=5), changed(1, total_chunks=(1 << 64) - 1)),
    ),
    Row("K7", "a chunk in the middle that says it is the last", LENGTH, changed(1, is_final_chunk=True)),
    Row(
        "K8",
        "a length of 2⁶³−1, of 2⁶⁴−1; half a gigabyte",
        TOO_LARGE,
        each(*(declared(n, data=False) for n in ((1 << 63) - 1, (1 << 64) - 1, 1 << 29))),
        remark="from the header alone",
    ),
    Row(
        "K8",
        "a length of 0, and data",
        "INVALID_ARGUMENT MALFORMED",
        declared(0),
        usual=False,
        remark="no frame of this model is empty: judged from the header alone",
    ),
    Row("K8", "a million frames", "INVALID_ARGUMENT LENGTH_MISMATCH", sent(many_frames)),
    Row("K8", "a million tensors", TOO_LARGE, sent(too_many_tensors)),
    Row("K9", "a million chunks of one byte; a million empty ones", SIZE, each(tiny(b"x"), tiny(b"")), remark="at the first"),
    Row("K10", "a chunk of 4 MiB and a byte", TOO_LARGE, sent(too_large_a_chunk)),
    Row(
        "K12",
        "nothing at all; nothing behind the header, the first, the third chunk",
        STALLED,
        each(begins_nothing, *(stalls(after) for after in (0, 1, 3))),
        soon=STALL + 1.0,
    ),
    Row("K12", "a byte a second", STALLED, trickles, soon=STALL + 1.0),
    Row(
        "K13",
        "twelve uploads of one client at once",
        f"{STALLED}; RESOURCE_EXHAUSTED QUOTA",
        at_once,
        soon=STALL + 1.0,
        usual=False,
        remark="the newest takes the place of one that may have broken off without a word; here it then stands still",
    ),
    Row(
        "K15",
        "uploads broken off in the middle, by RST_STREAM and by TCP's RST",
        "nothing left",
        broken_off,
        soon=10.0,
        remark="no file, no descriptor",
    ),
    Row(
        "K17",
        "a checksum that is wrong in one bit, and a right digest",
        "DATA_LOSS CHECKSUM",
        changed(1, crc32c=lambda crc: crc ^ 1),
        remark="may be sent again",
    ),
]
