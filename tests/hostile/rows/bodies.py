"""S, Z, P and T: bodies that are not what they claim to be."""

# ruff: noqa: RUF001 - figures are written as people read them, and some letters are meant to deceive

import io
import json
import os
import zipfile

import lz4.frame
import msgpack
import torch
import zstandard
from attack import Row, one, together, update
from model import MODEL, NBYTES, trained

from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.safetensors import Safetensors
from fedcore.codecs.zstd import Zstd

MALFORMED, MISMATCH = "INVALID_ARGUMENT MALFORMED", "INVALID_ARGUMENT SCHEMA_MISMATCH"
TOO_LARGE = "RESOURCE_EXHAUSTED TOO_LARGE"
NO_CODEC = "FAILED_PRECONDITION NO_COMMON_CODEC"
KINDS = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def body(make, codec=None):
    """Return what sends an update whose body is replaced; ``make`` is given the legal one."""

    def spoil(header, legal):
        other = make(legal)
        header.manifest.frames[:] = [len(other)]
        return other

    return update(spoil, codec=codec)


def bodies(*made, codec=None):
    return together(*(body((lambda legal, one=one: one) if isinstance(one, bytes) else one, codec) for one in made))


# --- S: safetensors ---


def entries():
    """Return the legal header of the format, as a dict."""
    found, at = {}, 0
    for name, tensor in MODEL.items():
        found[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    return found


def framed(header, data=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + (bytes(NBYTES) if data is None else data)


def described(name, **changes):
    """Return a frame in which one tensor is described otherwise."""
    found = entries()
    found[name].update(changes)
    return framed(found)


def called(name):
    return framed({(name if key == "scale" else key): entry for key, entry in entries().items()})


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickled())
    return file.getvalue()


BIAS = entries()["output.bias"]["data_offsets"]
SAFETENSORS = [
    Row("S1", "0, 1 and 7 bytes", MALFORMED, bodies(b"", b"\0", bytes(7))),
    Row(
        "S1",
        "a header of 0, 2⁶⁴−1, 100 MB and 1 bytes",
        MALFORMED,
        bodies(*(n.to_bytes(8, "little") + bytes(1000) for n in (0, (1 << 64) - 1, 100_000_001))),
    ),
    Row(
        "S2",
        "a header that is not JSON, not UTF-8, a list, nested 20,000 deep",
        MALFORMED,
        bodies(*map(framed, (b"nonsense", b'{"\xff\xfe": 1}', b"[]", b'{"a":' + b"[" * 20_000, b"", b'{"a": NaN}', b"{}{}"))),
    ),
    Row(
        "S3",
        "overlap, hole, reversed offsets, −1, 2³³ × 2³³, a fraction, true",
        MALFORMED,
        bodies(
            *(
                described("output.bias", data_offsets=pair)
                for pair in (
                    [BIAS[0] - 4, BIAS[1] - 4],
                    [BIAS[0] + 4, BIAS[1] + 4],
                    BIAS[::-1],
                    [-1, BIAS[1]],
                    [BIAS[0], 1 << 66],
                    [1.5, 2],
                    [True, 4],
                )
            ),
            *(described("output.bias", shape=shape) for shape in ([-1], [4.0], "4", [[4]])),
        ),
    ),
    Row("S3", "bytes behind the data; data cut off", MALFORMED, bodies(lambda legal: legal + b"\0", lambda legal: legal[:-1])),
    Row(
        "S3",
        "another shape than the data; 2³³ × 2³³",
        MISMATCH,
        bodies(described("output.bias", shape=[5]), described("output.bias", shape=[1 << 33, 1 << 33])),
        usual=False,
        remark="the shape is compared with the model's first",
    ),
    Row(
        "S6",
        "more fields in an entry; one field less",
        MALFORMED,
        bodies(
            described("scale", more=1),
            framed({**entries(), "scale": {"dtype": "F32", "shape": []}}),
            framed({**entries(), "scale": 1}),
        ),
        remark="refused: a frame is what was asked for and nothing else",
    ),
    Row(
        "S6",
        "a tensor twice, a key twice",
        MALFORMED,
        bodies(
            framed(json.dumps(entries())[:-1].encode() + b',"scale":1}'),
            framed(json.dumps(entries()).replace('"dtype"', '"dtype":"F32","dtype"').encode()),
        ),
    ),
    Row(
        "S7",
        "`__metadata__` of 60 kB, of numbers, of lists",
        MALFORMED,
        bodies(
            framed({"__metadata__": {"a": "x" * 200_000}, **entries()}, b""),
            framed({"__metadata__": {"a": 1}, **entries()}),
            framed({"__metadata__": [], **entries()}),
        ),
    ),
    Row(
        "S7",
        "`__metadata__` of 50 MB",
        TOO_LARGE,
        update(lambda header, legal: header.manifest.frames.__setitem__(0, 50_000_000), ways=("send_stream",)),
        remark="more than an update of this model can need: before the first chunk",
    ),
    Row(
        "S9",
        "tensors called nothing, `../../x`, `__proto__`, with 100,000 characters",
        MISMATCH,
        bodies(*map(called, ("", "../../x", "__proto__", "x" * 30_000, "__class__", "scale\0"))),
        remark="no name is used as a path or an attribute",
    ),
    Row(
        "S9",
        "the same names in the header of the update",
        MISMATCH,
        together(
            *(
                update(lambda header, legal, name=name: setattr(header.manifest.tensors.infos[2], "name", name))
                for name in ("", "../../x", "__proto__", "x" * 100_000, "scale\n", "\u202escale")
            )
        ),
    ),
    Row("S9", "a boolean that is 7", MALFORMED, body(lambda legal: legal[:-1] + b"\7")),
    Row(
        "S10",
        "a legal frame with a ZIP archive, and with a pickle, behind it",
        MALFORMED,
        bodies(lambda legal: legal + zipped(), lambda legal: legal + pickled()),
    ),
]


# --- Z: compression ---


def wrapped(compressed, length, width=1):
    return bytes([width]) + length.to_bytes(8, "little") + compressed


def inner():
    made, _ = trained(MODEL, 1, 0)
    return b"".join(Safetensors().encode(made))


def lz4ed(data, **options):
    return lz4.frame.compress(data, **{"content_checksum": True, "store_size": True, **options})


def zstded(data, **options):
    return zstandard.ZstdCompressor(**{"write_checksum": True, "write_content_size": True, **options}).compress(data)


LEGAL = inner()
SMALL = framed(entries())
ZEROS = bytes(60 << 20)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + bytes(4)


def lying(frame, length, place):
    """Return a frame that states another content size."""
    return frame[:place] + length.to_bytes(8, "little") + frame[place + 8 :]


def both(*makers):
    """Return what sends, with either compressor, the frames that are made with it."""
    either = (Lz4, lz4ed), (Zstd, zstded)
    return together(*(bodies(*(maker(pack) for maker in makers), codec=wrapper(Safetensors())) for wrapper, pack in either))


COMPRESSION = [
    Row(
        "Z1",
        "240 kB that inflate to 60 MiB, as what they are",
        MALFORMED,
        bodies(wrapped(lz4ed(ZEROS), len(ZEROS)), codec=Lz4(Safetensors())),
        usual=False,
        remark="judged by the lengths in front: nothing is inflated",
    ),
    Row(
        "Z1",
        "the same, stating the length of a legal frame in front, and in both places",
        MALFORMED,
        bodies(
            wrapped(lz4ed(ZEROS), len(LEGAL)), wrapped(lying(lz4ed(ZEROS), len(LEGAL), 6), len(LEGAL)), codec=Lz4(Safetensors())
        ),
        usual=False,
        remark="inflated to one byte more than stated",
    ),
    Row(
        "Z1",
        "1 GiB in 100 kB of Zstandard",
        MALFORMED,
        bodies(
            wrapped(zstded(ZEROS) * 17, len(LEGAL)),
            wrapped(zstded(ZEROS, write_content_size=False), len(LEGAL)),
            codec=Zstd(Safetensors()),
        ),
        usual=False,
        remark="as above",
    ),
    Row(
        "Z1",
        "16 MiB that inflate to 4 GiB",
        TOO_LARGE,
        update(lambda header, legal: header.manifest.frames.__setitem__(0, 16 << 20), ways=("send_stream",)),
        remark="more than an update of this model can need: before the first chunk",
    ),
    Row(
        "Z2",
        "a stated length of 1 TiB, of 0, smaller than it is, none",
        MALFORMED,
        bodies(
            *(wrapped(lying(lz4ed(LEGAL), n, 6), len(LEGAL)) for n in (1 << 40, 0, len(LEGAL) - 1)),
            wrapped(lz4ed(LEGAL, store_size=False), len(LEGAL)),
            wrapped(lz4ed(LEGAL), len(LEGAL) - 1),
            wrapped(lz4ed(LEGAL), 1 << 40),
            codec=Lz4(Safetensors()),
        ),
    ),
    Row(
        "Z2",
        "the same of Zstandard",
        MALFORMED,
        bodies(
            wrapped(zstded(LEGAL, write_content_size=False), len(LEGAL)),
            wrapped(zstded(LEGAL), len(LEGAL) - 1),
            wrapped(zstded(LEGAL), 1 << 40),
            wrapped(zstded(LEGAL, write_checksum=False), len(LEGAL)),
            codec=Zstd(Safetensors()),
        ),
    ),
    Row(
        "Z3",
        "cut off in the middle, at the end, behind the header",
        MALFORMED,
        both(*((lambda pack, cut=cut: wrapped(pack(LEGAL)[:cut], len(LEGAL))) for cut in (-1, -4, -8, 5000, 20, 4, 0))),
    ),
    Row(
        "Z4",
        "bytes behind the frame; two frames; a skippable one in front",
        MALFORMED,
        both(
            lambda pack: wrapped(pack(LEGAL) + b"\0", len(LEGAL)),
            lambda pack: wrapped(pack(SMALL) * 2, len(SMALL)),
            lambda pack: wrapped(pack(SMALL) * 2, 2 * len(SMALL)),
            lambda pack: wrapped(pack(LEGAL[:100]) + pack(LEGAL[100:]), len(LEGAL)),
            lambda pack: wrapped(SKIPPABLE + pack(LEGAL), len(LEGAL)),
            lambda pack: wrapped(SKIPPABLE, len(LEGAL)),
        ),
    ),
    Row(
        "Z7",
        "said to be raw, and compressed; and the other way round; an unknown width",
        MALFORMED,
        both(
            lambda pack: wrapped(pack(LEGAL), len(LEGAL), 0),
            lambda pack: wrapped(pack(LEGAL), len(pack(LEGAL)), 0),
            lambda pack: wrapped(LEGAL, len(LEGAL), 1),
            lambda pack: wrapped(pack(LEGAL), len(LEGAL), 3),
            lambda pack: b"\1",
        ),
    ),
    Row(
        "Z7",
        "a header that names no compression, and a compressed body",
        MALFORMED,
        bodies(wrapped(lz4ed(LEGAL), len(LEGAL)), lz4ed(LEGAL)),
    ),
    Row(
        "Z7",
        "codecs that are not accepted: unknown, lossy, `torch`, none, 10,000 parts",
        NO_CODEC,
        together(
            *(
                update(lambda header, legal, name=name: setattr(header.manifest, "codec", name))
                for name in ("nonsense", "int8", "torch", "", "safetensors" + "+lz4" * 10_000, "../safetensors", "safetensors+")
            )
        ),
    ),
]


# --- P: msgpack ---


def packed(*changes, count=6):
    """Return a msgpack frame whose first tensor is described by other things."""
    head = bytes([0x90 | count])
    rows = [[name, str(t.dtype).removeprefix("torch."), list(t.shape), t.numpy().tobytes()] for name, t in MODEL.items()]
    for place, value in changes:
        rows[0][place] = value
    return head + b"".join(map(msgpack.packb, rows))


def deep(depth):
    return bytes([0x91]) * depth + b"\xc0"


PACKED = packed()
HUGE = tuple(bytes([kind]) + b"\xff" * 4 for kind in (0xDD, 0xDF, 0xC6, 0xDB, 0xC9))
MSGPACK = [
    Row(
        "P-1",
        "array, map, bin, text, extension of 2³²−1",
        MALFORMED,
        bodies(*HUGE, *(b"\x96\x94" + kind for kind in HUGE), codec=Msgpack()),
        remark="nothing is allocated for a length that is claimed",
    ),
    Row(
        "P-2",
        "nested 100,000 and 500 deep; a tensor's shape nested",
        MALFORMED,
        bodies(deep(100_000), deep(500), b"\x96\x94" + deep(5000), packed((2, [[128], 390])), codec=Msgpack()),
    ),
    Row(
        "P-4",
        "a map, with a key twice, with keys that are numbers, lists, NaN",
        MALFORMED,
        bodies(
            b"\x82\xa1a\x01\xa1a\x02",
            b"\x81\x01\x01",
            b"\x81\x90\x01",
            b"\x81\xcb\x7f\xf8" + bytes(6) + b"\x01",
            b"\x96\x94\x81\xa1a\x01",
            codec=Msgpack(),
        ),
    ),
    Row(
        "P-5",
        "bytes behind the last tensor; nothing at all; names that are no UTF-8",
        MALFORMED,
        bodies(PACKED + b"\0", b"", PACKED.replace(b"hidden.weight", b"hidden\xff\xfeight"), PACKED[:-1], codec=Msgpack()),
    ),
    Row(
        "P-7",
        "a fraction, true, 2⁶⁴−1, −1, NaN, text in a shape; a number as a name",
        MALFORMED,
        bodies(
            *(packed((2, [value, 390])) for value in (128.0, True, -1, float("nan"), "128", None)),
            packed((0, 5)),
            packed((1, 5)),
            packed((3, "text")),
            codec=Msgpack(),
        ),
    ),
    Row(
        "P-7",
        "2⁶⁴−1 in a shape; another dtype; a dtype that is none",
        MISMATCH + "; INVALID_ARGUMENT BAD_DTYPE",
        lambda attacker: "; ".join(
            [
                bodies(packed((2, [(1 << 64) - 1, 390])), packed((1, "float64")), packed((0, "other")), codec=Msgpack())(
                    attacker
                ),
                bodies(packed((1, "object")), packed((1, ">f4")), codec=Msgpack())(attacker),
            ]
        ),
    ),
    Row("P-7", "tensors of 64-bit numbers under another name for it", MISMATCH, bodies(packed(count=5), codec=Msgpack())),
]


# --- T: code ---

CANARY = "canary"


class Touch:
    """What a pickle of this does when it is read."""

    def __reduce__(self):
        return (os.system, (f"touch {CANARY}",))


def pickled():
    file = io.BytesIO()
    torch.save(Touch(), file)
    return file.getvalue()


def plain_pickle():
    import pickle

    return pickle.dumps(Touch())


def under(codec):
    """Return what sends pickles and says that they are encoded with a codec."""

    def attack(attacker):
        def spoil(made):
            def change(header, legal):
                header.manifest.codec, header.manifest.frames[0] = codec, len(made)
                return made

            return change

        return one({str(n): update(spoil(made))(attacker) for n, made in enumerate((pickled(), plain_pickle()))})

    return attack


CODE = [
    Row(
        "T1",
        "a pickle that runs a command, as what it is",
        NO_CODEC,
        under("torch"),
        remark="unless the operator names `torch`: see below",
    ),
    Row(
        "T1",
        "the same, said to be safetensors, msgpack, protobuf",
        MALFORMED,
        together(*map(under, ("safetensors", "msgpack", "protobuf"))),
    ),
]
TRUSTED = [
    Row(
        "T1",
        "a pickle that runs a command, to a server that accepts `torch`",
        MALFORMED,
        under("torch"),
        remark="read with `weights_only=True`, which refuses it; a peer that is trusted for this codec should still be one",
    ),
]
