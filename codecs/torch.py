"""What ``torch.save`` writes: for peers that speak nothing else, and only between peers that trust each other.

Frame layout:
    a zip archive, nothing compressed, as ``torch.save({name: tensor, ...})`` makes it: a pickle that names the tensors
    and says how they lie in the archive's other members

    Reading it runs torch's restricted unpickler (``weights_only=True``), which has been broken twice (CVE-2025-32434,
    CVE-2026-24747). That is why the codec is never accepted unless an operator names it, and needs torch 2.10.

What survives:
    Names, order, dtypes, shapes and every bit. Ties need no place: a shard holds every tied tensor once.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from itertools import zip_longest

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from fedcore.codec import Codec, Frame
from fedcore.errors import DecodeError, MissingDependency
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, expect, land
from fedcore.transport import Buffer
from fedcore.views import raw_bytes

__all__ = ["Torch"]

_END = 22  # bytes of the record that ends a zip archive
_ENDS = (_END, _END + 20 + 56)  # and with the two that torch writes before it


class Torch(Codec):
    """``torch.save`` and ``torch.load(weights_only=True)``; accepted only where an operator names it.

    Raises:
        MissingDependency: torch is older than 2.10, whose loader can be made to run code.
    """

    part = "torch"
    trusted_only = True

    def __init__(self) -> None:
        if TorchVersion(torch.__version__) < "2.10":
            raise MissingDependency(
                f"codec 'torch' needs torch>=2.10: torch.load of {torch.__version__} is unsafe (CVE-2026-24747); "
                "pip install 'torch>=2.10', or use another codec"
            )

    def encode(
        self, shard: Parameters, *, base: Mapping[str, Tensor] | None = None, state: dict[str, object] | None = None
    ) -> Frame:
        """Return what ``torch.save`` writes of copies of the tensors."""
        file = io.BytesIO()
        # torch.save writes a tensor's whole storage: of a view that would be everything it is a view of
        torch.save({name: tensor.detach().clone() for name, tensor in shard.items()}, file)
        return file.getbuffer()

    def decode(
        self,
        frame: Buffer,
        spec: Spec,
        *,
        base: Mapping[str, Tensor] | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> Parameters:
        """Load the archive with the restricted unpickler, then land each tensor."""
        view = memoryview(frame).cast("B")
        _check_archive(view, spec)
        try:
            loaded = torch.load(io.BytesIO(view), map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises whatever the bytes make it raise
            raise DecodeError(f"torch.load refused the frame: {str(error)[:200]}") from error
        expect(type(loaded) is dict, f"the frame holds a {type(loaded).__name__}, not a dict of tensors")
        tensors: Parameters = {}
        for info, name in zip_longest(spec, loaded):
            if info is None:
                raise DecodeError(f"tensor {name!r:.80} is not part of the shard", reason="SCHEMA_MISMATCH")
            if name is None:
                raise DecodeError(f"tensor {info.name!r} is missing", reason="SCHEMA_MISMATCH")
            found, data = _described(name, loaded[name], info)
            tensors[info.name] = land(found.name, data, info, into, found)
        return tensors


def _check_archive(view: memoryview, spec: Spec) -> None:
    """Check that the frame is one zip archive from its first byte to its last, and grows by nothing when it is read."""
    words = sum(len(info.name.encode()) for info in spec)
    overhead = 4096 * (len(spec) + 16) + words
    expect(len(view) <= spec.nbytes + overhead, f"a frame of {len(view)} bytes is longer than any such shard needs")
    expect(len(view) > _END and bytes(view[:4]) == b"PK\x03\x04", "the frame is no zip archive")
    end = bytes(view[-_END:])
    expect(end[:4] == b"PK\x05\x06" and end[20:] == b"\0\0", "bytes behind the zip archive")
    directory = int.from_bytes(end[12:16], "little") + int.from_bytes(end[16:20], "little")
    expect(len(view) - directory in _ENDS, "the zip archive does not begin where the frame does")
    try:
        members = zipfile.ZipFile(io.BytesIO(view)).infolist()
    except Exception as error:  # zipfile raises half a dozen kinds
        raise DecodeError(f"the zip archive cannot be read: {error}") from error
    expect(all(m.compress_type == zipfile.ZIP_STORED for m in members), "the zip archive is compressed")
    expect(sum(m.file_size for m in members) <= len(view), "the zip archive holds more than its own length")
    words = sum(m.file_size for m in members if "/data/" not in m.filename)
    expect(words <= overhead, f"{words} bytes of pickle are more than any such shard needs")


def _described(name: object, value: object, info: TensorInfo) -> tuple[TensorInfo, memoryview]:
    """Return what was loaded in the place of ``info``, and its bytes."""
    if not isinstance(name, str):
        raise DecodeError(f"a {type(name).__name__} came where {info.name!r} was due", reason="SCHEMA_MISMATCH")
    if type(value) is not Tensor or value.layout is not torch.strided or not value.is_cpu or value.is_quantized:
        raise DecodeError(f"{name!r:.80} is not a dense tensor", reason="SCHEMA_MISMATCH")
    found = TensorInfo(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))
    # bytes only of what has the right size: a few bytes can be expanded to any shape
    fits = (found.dtype, found.shape) == (info.dtype, info.shape)
    return found, raw_bytes(value.resolve_neg()) if fits else memoryview(b"")
