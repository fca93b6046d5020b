"""Payloads as files, each under its digest: what has its name is whole, and was on the disk before it had it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from secrets import token_hex

import numpy as np

from fedcore.broadcast import Payload
from fedcore.codec import Codec
from fedcore.durable import place, synchronise
from fedcore.errors import FedcoreError, OutOfStorage, StateError
from fedcore.failpoints import reach
from fedcore.intake import receive
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec
from fedcore.private import claim_folder
from fedcore.transport import Buffer

SHARD_BYTES = 1 << 30
"""Files up to this size are one frame: with the default codec, an ordinary safetensors file."""


class Blobs:
    """A folder of payloads.

    A file is written in a spool beside, synchronised, renamed, and its folder synchronised: a crash at any instruction
    leaves the whole file or none, and at worst a remnant in the spool, which :meth:`sweep` takes away.

    Args:
        folder: where; it is made if it is not there, for this user alone.
        codec: what the files are written with, lossless.
        looking: only read; makes nothing.

    Raises:
        StateError: others may write there.
    """

    def __init__(self, folder: Path, codec: Codec, *, looking: bool = False):
        self._folder, self._codec, self._ending = folder, codec, f".{codec.name}"
        self._spool = folder / "spool"
        for each in () if looking else (folder, self._spool):
            claim_folder(each)

    def put(self, payload: Payload, point: str) -> None:
        """Write an encoded payload and return when it is on the disk; one that is there already is not written again.

        Args:
            payload: made with this folder's codec.
            point: what the failpoints on the way are called: ``point.before_fsync``, ``point.before_rename``, ...

        Raises:
            OutOfStorage: the disk has no room.
        """
        target = self._path(payload.manifest)
        part = self._spool / f"{target.name}.{token_hex(4)}"
        try:
            if target.exists():  # whoever wrote it may have come no further than to give it its name
                return synchronise(self._folder)
            place(target, part, payload.body, lambda step: reach(f"{point}.{step}"), private=True)
        except OSError as error:
            raise OutOfStorage(f"{target} cannot be written: {error.strerror}") from error

    def get(self, manifest: Manifest) -> Parameters:
        """Read a payload back, checked against its digest.

        Raises:
            StateError: the file is missing, or holds anything but that payload.
        """
        path = self._path(manifest)
        try:
            spec = Spec.checked(manifest.tensors)
            return spec.tie(receive(manifest, [_content(path)], spec, self._codec))
        except FileNotFoundError:
            raise StateError(f"{path} is missing", reason="STATE_DAMAGED") from None
        except (OSError, FedcoreError) as error:
            raise StateError(f"{path} is damaged: {error}", reason="STATE_DAMAGED") from error

    def sweep(self, keep: Collection[str], *, remnants: bool = True) -> list[str]:
        """Take away all files but those of the payloads with these digests, and ``remnants``; returns what was taken."""
        kept = {f"{digest}{self._ending}" for digest in keep}
        rest = [path for path in self._folder.iterdir() if path.is_file() and path.name not in kept]
        rest += self._spool.iterdir() if remnants else ()
        for path in rest:
            reach("gc.blob_delete")
            path.unlink()
        return sorted(path.name for path in rest)

    def _path(self, manifest: Manifest) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", manifest.digest):
            raise StateError(f"{manifest.digest[:80]!r} is no digest", reason="STATE_DAMAGED")
        return self._folder / f"{manifest.digest}{self._ending}"


def _content(path: Path) -> Buffer:
    if path.is_symlink():
        raise OSError("it is a link")
    return np.memmap(path, np.uint8, "r").data if path.stat().st_size else b""
