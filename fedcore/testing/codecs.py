"""The laws of a codec as one plain function, for the codecs of fedcore and for those of anybody else.

::

    from fedcore.testing.codecs import check_codec

    def test_my_codec():
        check_codec(MyCodec())
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fedcore import registry
from fedcore.codec import Codec, buffers, frame_bytes, joined
from fedcore.errors import DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import DTYPES, Parameters, Spec, dtype_name
from fedcore.shards import shards
from fedcore.transport import Buffer
from fedcore.views import contiguous, raw_bytes

__all__ = ["check_codec"]

_NAMES = ("z", "a.b.weight", "m", "a", "名前.ü.☂", "../../x", "__proto__", '\\"quoted"', "b@0", "n" * 1024, "語" * 1024)
_TAILS = (b"\0", b" ", b"\n", b"PK\x05\x06" + bytes(18), b"\x80\x04N.")


def check_codec(codec: Codec, *, seed: int = 0) -> None:
    """Check that ``codec`` keeps the contract of :class:`fedcore.codec.Codec`; takes about a second, and no pytest.

    Shards of every dtype and many shapes must survive, bit for bit if the codec is lossless, with a base and without one;
    what is lost is the codec's own business, but it is the same whenever a frame is decoded. Frames that were cut, changed,
    extended or made for another Spec must be refused with ``DecodeError`` and nothing else.

    Args:
        codec: the codec to judge.
        seed: of the values and the damage; the same seed checks the same things.

    Raises:
        AssertionError: saying which law does not hold, and for what.
    """
    rng = np.random.default_rng(seed)
    _check_name(codec)
    for what, shard in _shards(rng, wild=_is_lossless(codec)):
        _check_untouched(codec, what, shard)
        _check_round_trip(codec, what, shard)
        _check_into(codec, what, shard)
    _check_base(codec, rng)
    _check_slices(codec, rng)
    _check_threads(codec, rng)
    for what, shard in _victims(rng):
        _check_damage(codec, what, shard, rng)
        _check_damage(codec, f"{what}, with a base", shard, rng, _changed(shard, rng))
        _check_other_specs(codec, what, shard)


# --- laws -------------------------------------------------------------------------------------------------------------


def _check_name(codec: Codec) -> None:
    parts = codec.name.split("+")
    legal = all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", part) for part in parts)
    _require(legal, f"{codec!r}: the name {codec.name!r} is not made of lower-case letters, digits and underscores")
    _require(parts[-1] == codec.part, f"{codec!r}: the name {codec.name!r} does not end with the part {codec.part!r}")
    _require(codec == codec and hash(codec) == hash(codec), f"{codec!r} does not equal itself")
    if set(parts) <= set(registry.available("codecs")):
        _require(registry.codec(codec.name) == codec, f"{codec!r} is not what the registry makes of {codec.name!r}")


def _check_round_trip(codec: Codec, what: str, shard: Parameters) -> None:
    spec, frame = _spec(shard), _encoded(codec, shard)
    for kind in (bytes, bytearray, memoryview):
        decoded = _decoded(codec, kind(frame), spec, what)
        _check_looks(codec, decoded, spec, what)
        _check_bits(codec, decoded, shard, what)
    mutable = bytearray(frame)
    decoded = _decoded(codec, mutable, spec, what)
    mutable[:] = bytes(len(mutable))
    _check_same(codec, decoded, _decoded(codec, frame, spec, what), f"{what}: after the frame's memory was used again")


def _check_untouched(codec: Codec, what: str, shard: Parameters) -> None:
    before = {name: bytes(raw_bytes(tensor)) for name, tensor in shard.items()}
    frame = codec.encode(shard)
    _require(frame_bytes(frame) == len(joined(buffers(frame))), f"{codec!r}: {what}: the frame is not made of bytes")
    _decoded(codec, joined(buffers(frame)), _spec(shard), what)
    after = {name: bytes(raw_bytes(tensor)) for name, tensor in shard.items()}
    _require(before == after, f"{codec!r}: {what}: the tensors to encode were changed")


def _check_into(codec: Codec, what: str, shard: Parameters) -> None:
    spec = _spec(shard)
    into = spec.blank()
    places = {name: tensor.data_ptr() for name, tensor in into.items()}
    decoded = _decoded(codec, _encoded(codec, shard), spec, what, into)
    _check_looks(codec, decoded, spec, what)
    for name, tensor in decoded.items():
        _require(tensor.data_ptr() == places[name], f"{codec!r}: {what}: {name!r} was not filled in place")
    _check_same(codec, into, decoded, f"{what}: what `into` holds")
    _check_bits(codec, into, shard, what)


def _check_base(codec: Codec, rng: np.random.Generator) -> None:
    shard = _mixed(rng) | {"large": _values(rng, "float32", (60, 90)), "same": _values(rng, "float32", (50, 60))}
    spec, state = _spec(shard), dict[str, object]()
    for turn in range(3):
        what = f"with a base, time {turn + 1}"
        base, shard = shard, _changed(shard, rng) | {"same": shard["same"]}
        held = {f"{part} {name}": t for part, of in (("base", base), ("state", dict(state))) for name, t in of.items()}
        before = {name: bytes(raw_bytes(t)) for name, t in held.items() if isinstance(t, Tensor)}
        frame = bytes(joined(buffers(codec.encode(shard, base=base, state=state))))
        for name, was in before.items():
            tensor = held[name]
            same = isinstance(tensor, Tensor) and raw_bytes(tensor) == was
            _require(same, f"{codec!r}: {what}: the tensor {name!r} was changed in place")
        decoded = _decoded(codec, frame, spec, what, base=base)
        _check_looks(codec, decoded, spec, what)
        _check_bits(codec, decoded, shard, what)
        again = _decoded(codec, frame, spec, what, spec.blank(), base)
        _check_same(codec, again, decoded, f"{what}: decoded again, in place")
        alone = _attempt(codec, frame, spec, f"{what}, decoded without it")
        if not codec.uses_base:
            _require(alone is not None, f"{codec!r}: {what}: uses_base is False, but the frame needs the base")
            _check_same(codec, alone or {}, decoded, f"{what}: uses_base is False, but decoded without the base")


def _check_slices(codec: Codec, rng: np.random.Generator) -> None:
    whole = {"large": _values(rng, "float32", (50, 90)), "small": _values(rng, "int64", (3,))}
    for shard in shards(_spec(whole), 4096):
        taken = shard.take(whole)
        decoded = _decoded(codec, _encoded(codec, taken), shard.spec, "a slice")
        _check_looks(codec, decoded, shard.spec, "a slice")
        _check_bits(codec, decoded, taken, "a slice")


def _check_threads(codec: Codec, rng: np.random.Generator) -> None:
    all_shards = [_mixed(rng) for _ in range(16)]

    def work(shard: Parameters) -> Parameters:
        return codec.decode(_encoded(codec, shard), _spec(shard))

    with ThreadPoolExecutor(4) as pool:
        for shard, decoded in zip(all_shards, pool.map(work, all_shards), strict=True):
            _check_looks(codec, decoded, _spec(shard), "used by four threads")
            _check_bits(codec, decoded, shard, "used by four threads")


def _check_damage(codec: Codec, what: str, shard: Parameters, rng: np.random.Generator, base: Parameters | None = None) -> None:
    spec, frame = _spec(shard), _encoded(codec, shard, base)
    lengths = {0, 1, 2, 4, 8, 9, 16, len(frame) // 2, len(frame) - 1, *rng.integers(0, len(frame), 24).tolist()}
    for length in sorted(lengths):
        if length < len(frame):
            _refused(codec, frame[:length], spec, f"{what}, cut to {length} of {len(frame)} bytes", base)
    for tail in (*_TAILS, frame):
        _refused(codec, frame + tail, spec, f"{what}, with {tail[:8]!r} behind it", base)
    for length in (1, 64, len(frame)):
        _refused(codec, rng.bytes(length), spec, f"{length} random bytes", base)
        _refused(codec, bytes(length), spec, f"{length} zeros", base)
    for place in (*range(min(32, len(frame))), *rng.integers(0, len(frame), 64).tolist()):
        changed = bytearray(frame)
        changed[place] ^= int(rng.integers(1, 256))
        decoded = _attempt(codec, changed, spec, f"{what}, byte {place} changed", base)
        if decoded is not None:
            _check_looks(codec, decoded, spec, f"{what}, byte {place} changed")


def _check_other_specs(codec: Codec, what: str, shard: Parameters) -> None:
    frame, (first, *rest) = bytes(_encoded(codec, shard)), _spec(shard).infos
    number = int(np.prod(first.shape))
    others = {
        "the first tensor renamed": [TensorInfo(first.name + "x", first.dtype, first.shape), *rest],
        "the last tensor renamed": [first, *rest[:-1], TensorInfo("other", rest[-1].dtype, rest[-1].shape)],
        "a tensor flattened": [TensorInfo(first.name, first.dtype, (number,)), *rest],
        "a tensor turned": [TensorInfo(first.name, first.dtype, first.shape[::-1]), *rest],
        "a tensor made longer": [TensorInfo(first.name, first.dtype, (first.shape[0] + 1, *first.shape[1:])), *rest],
        "another dtype of the same size": [TensorInfo(first.name, "int32", first.shape), *rest],
        "another dtype of another size": [TensorInfo(first.name, "float64", first.shape), *rest],
        "the first tensor left out": rest,
        "the last tensor left out": [first, *rest[:-1]],
        "one tensor more": [first, *rest, TensorInfo("more", "float32", (1,))],
        "one empty tensor more": [first, *rest, TensorInfo("more", "float32", (0,))],
        "another order": [*rest, first],
        "no tensors": [],
    }
    for change, infos in others.items():
        _refused(codec, frame, Spec.checked(infos), f"{what}, decoded with {change}")


# --- what is encoded --------------------------------------------------------------------------------------------------


def _shards(rng: np.random.Generator, wild: bool) -> Iterator[tuple[str, Parameters]]:
    make: Callable[..., Tensor] = _bits if wild else _values
    yield "every dtype", {dtype: make(rng, dtype, (3, 5)) for dtype in DTYPES}
    yield "every dtype, 0-dimensional", {dtype: make(rng, dtype, ()) for dtype in DTYPES}
    yield "one tensor", {"weight": make(rng, "float32", (7,))}
    yield "no tensors", {}
    empty = {"none": make(rng, "float32", (0, 3)), "within": make(rng, "bfloat16", (2, 0, 2))}
    yield "empty tensors", empty
    yield "empty tensors among others", empty | {"some": make(rng, "bool", (4,)), "last": make(rng, "int8", (0,))}
    yield "names in their order", {name: make(rng, "float16", (2,)) for name in _NAMES}
    square = make(rng, "float32", (6, 6))
    yield "tensors that were not contiguous", contiguous(
        {"turned": square.t(), "strided": square[::2, 1:3], "expanded": square[:1, :1].expand(3, 4)}
    )
    yield "views of a larger tensor", {"row": square[2], "again": square[2], "rows": square[1:4]}
    yield "long zeros", {"zeros": torch.zeros(40_000), "noise": make(rng, "float32", (500,))}
    yield "long noise", {"noise": make(rng, "float32", (40_000,)), "zeros": torch.zeros(10)}
    if wild:
        yield "all bit patterns", {
            dtype: torch.from_numpy(np.arange(1 << 8 * kind.itemsize, dtype=f"u{kind.itemsize}")).view(kind)
            for dtype, kind in DTYPES.items()
            if kind.itemsize < 3 and kind is not torch.bool
        }
        yield "special numbers", {
            "float32": torch.tensor([0x8000_0000, 1, 0x7F80_0001, 0xFFC0_1234, 0x7F80_0000], dtype=torch.uint32).view(
                torch.float32
            ),
            "float64": torch.tensor([-(1 << 63), 1, 0x7FF0 << 48 | 1, -(1 << 48), 0x7FF0 << 48]).view(torch.float64),
        }


def _victims(rng: np.random.Generator) -> Iterator[tuple[str, Parameters]]:
    yield "a small shard", _mixed(rng)
    yield "a shard that shrinks", _mixed(rng) | {"zeros": torch.zeros(2000)}
    yield "a large shard", _mixed(rng) | {"large": _values(rng, "float32", (3000,))}


def _mixed(rng: np.random.Generator) -> Parameters:
    return {
        "layer.weight": _values(rng, "float32", (3, 5)),
        "mask": _values(rng, "bool", (4,)),
        "steps": _values(rng, "int64", ()),
        "layer.bias": _values(rng, "bfloat16", (5,)),
    }


def _changed(shard: Parameters, rng: np.random.Generator) -> Parameters:
    return {name: _values(rng, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in shard.items()}


def _bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Tensor:
    if dtype == "bool":
        return _values(rng, dtype, shape)
    drawn = torch.empty(shape, dtype=DTYPES[dtype])
    if drawn.numel():
        raw_bytes(drawn)[:] = rng.bytes(drawn.nbytes)
    return drawn


def _values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Tensor:
    drawn = torch.from_numpy(np.asarray(rng.standard_normal(shape) * 3))
    if dtype == "bool":
        return drawn > 0
    return (drawn if DTYPES[dtype].is_floating_point else drawn.abs()).to(DTYPES[dtype])


# --- how it is judged -------------------------------------------------------------------------------------------------


def _is_lossless(codec: Codec) -> bool:
    # a wrapper's own flag says nothing of what it wraps
    inner = getattr(codec, "inner", None)
    return codec.lossless and (not isinstance(inner, Codec) or _is_lossless(inner))


def _spec(shard: Mapping[str, Tensor]) -> Spec:
    # not Spec.of, which takes tensors that share memory for tied: in a shard each is an entry
    return Spec.checked([TensorInfo(n, dtype_name(t.dtype, repr(n)), tuple(t.shape)) for n, t in shard.items()])


def _encoded(codec: Codec, shard: Parameters, base: Parameters | None = None) -> bytes:
    return bytes(joined(buffers(codec.encode(shard, base=base))))


def _decoded(
    codec: Codec, frame: Buffer, spec: Spec, what: str, into: Parameters | None = None, base: Parameters | None = None
) -> Parameters:
    try:
        return codec.decode(frame, spec, base=base, into=into)
    except DecodeError as error:
        raise AssertionError(f"{codec!r}: {what}: its own frame was refused: {error}") from error


def _attempt(codec: Codec, frame: Buffer, spec: Spec, what: str, base: Parameters | None = None) -> Parameters | None:
    try:
        return codec.decode(frame, spec, base=base)
    except DecodeError:
        return None
    except Exception as error:
        raise AssertionError(f"{codec!r}: {what}: raised {error!r:.200} instead of DecodeError") from error


def _refused(codec: Codec, frame: Buffer, spec: Spec, what: str, base: Parameters | None = None) -> None:
    _require(_attempt(codec, frame, spec, what, base) is None, f"{codec!r}: {what}: was accepted")


def _check_looks(codec: Codec, decoded: Parameters, spec: Spec, what: str) -> None:
    in_order = list(decoded) == [info.name for info in spec]
    _require(in_order, f"{codec!r}: {what}: came back without the names of the Spec in its order")
    for info in spec:
        tensor = decoded[info.name]
        looks = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        _require(looks == (info.dtype, info.shape), f"{codec!r}: {what}: {info.name[:80]!r} came back as {looks}")
        plain = tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad
        _require(plain, f"{codec!r}: {what}: {info.name[:80]!r} is not contiguous, on the CPU and without a gradient")


def _check_bits(codec: Codec, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    if _is_lossless(codec):
        _check_same(codec, got, wanted, what)


def _check_same(codec: Codec, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in wanted.items():
        same = raw_bytes(got[name]) == raw_bytes(tensor)
        _require(same, f"{codec!r}: {what}: {name[:80]!r} came back with other bits")


def _require(condition: bool, text: str) -> None:
    # no `assert`: it would be gone under `python -O`
    if not condition:
        raise AssertionError(text)
