"""What belongs to one client and never leaves it: its own part of the model, and its memory; in a file, if it is told to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedcore.client import Client
from fedcore.codec import buffers
from fedcore.durable import place
from fedcore.errors import ConfigError, FedcoreError, StateError
from fedcore.messages import TensorInfo
from fedcore.parameters import Parameters, Spec, copy_parameters, digest
from fedcore.registry import codec as find_codec

_CODEC = "safetensors"
_LENGTH = 8
_MODEL = "model"


class Personal:
    """Adds a client's own part to models that come, and takes it out of those that leave.

    Args:
        client: whose it is; its :attr:`~fedcore.Client.memory` is kept in the file, too.
        path: the file; None: nothing is kept beyond this process.

    Raises:
        StateError: the file is damaged.
        ConfigError: its folder is not there.
    """

    def __init__(self, client: Client, path: str | None):
        self._client, self._path = client, None if path is None else Path(path)
        self._own: Parameters | None = None
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise ConfigError(f"{self._path.parent} is no folder: the file with the client's own tensors cannot be made there")
        if self._path.exists():
            found = load(self._path)
            self._own = found.pop(_MODEL, None)
            client.memory.update(found)

    def completed(self, common: Mapping[str, Tensor]) -> Parameters:
        """Return a model of the common part and the client's own, a copy; at first that of its own parameters."""
        if self._own is None:
            whole = self._client.get_parameters()
            self._own = copy_parameters({name: value for name, value in whole.items() if name not in common})
        return {**common, **copy_parameters(self._own)}

    def parted(self, made: Mapping[str, Tensor], wanted: Spec) -> Parameters:
        """Return the common part of a trained model, and keep the rest."""
        names = {info.name for info in wanted.infos}
        self._own = copy_parameters({name: value for name, value in made.items() if name not in names})
        return {name: value for name, value in made.items() if name in names}

    def save(self) -> None:
        """Have it all on the disk, if it was told where."""
        if self._path is None:
            return
        own = {} if self._own is None else {_MODEL: self._own}
        try:
            save(self._path, {**self._client.memory, **own})
        except OSError as error:
            raise StateError(f"{self._path} cannot be written: {error.strerror}") from error


def save(path: Path, groups: Mapping[str, Parameters]) -> None:
    """Write groups of named tensors to a file, which is there whole or as it was before.

    Layout: 8 bytes, little-endian: the length of the JSON text that follows; the text; one safetensors frame.

    Raises:
        OSError: it cannot be written.
    """
    names = [(group, name) for group, tensors in groups.items() for name in tensors]
    flat = {str(number): groups[group][name].detach().cpu().clone().contiguous() for number, (group, name) in enumerate(names)}
    spec = Spec.of(flat)
    told = {"names": names, "tensors": [list(info) for info in spec.infos], "digest": digest(flat, spec)}
    text = json.dumps(told).encode()
    frame = buffers(find_codec(_CODEC).encode(flat))
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    place(path, part, [len(text).to_bytes(_LENGTH, "little"), text, *frame], private=True)


def load(path: Path) -> dict[str, Parameters]:
    """Read what :func:`save` wrote.

    Raises:
        StateError: it is damaged.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:_LENGTH], "little")
        told = json.loads(content[_LENGTH : _LENGTH + length])
        spec = Spec.checked([TensorInfo(name, dtype, tuple(shape), of) for name, dtype, shape, of in told["tensors"]])
        flat = find_codec(_CODEC).decode(content[_LENGTH + length :], spec)
        if digest(flat, spec) != told["digest"]:
            raise ValueError("its digest is another one")
        found: dict[str, Parameters] = {}
        for number, (group, name) in enumerate(told["names"]):
            found.setdefault(group, {})[name] = flat[str(number)]
    except (OSError, ValueError, LookupError, TypeError, FedcoreError) as error:
        text = f"{path}, with the client's own tensors, is damaged: {error}. Restore it from a copy, or remove it to begin anew"
        raise StateError(text, reason="STATE_DAMAGED") from error
    return found
