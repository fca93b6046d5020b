"""What a client is sent: decoded, and kept where it is needed again."""

from __future__ import annotations

from collections.abc import Callable

from fedcore.codec import Base, Codec
from fedcore.download import Download
from fedcore.failpoints import passing, reach
from fedcore.intake import receive
from fedcore.messages import Manifest
from fedcore.parameters import Parameters, Spec
from fedcore.pool import drain
from fedcore.registry import accepted_codec
from fedcore.retry import Trial
from fedcore.transport import Body


class Inbox:
    """Receives payloads.

    Args:
        accepts: parts of codec names that are accepted.
        codec: what updates are sent with, and probably models received; None: tensors come as they are, by reference.
        check: judges what a payload looks like, before memory is allocated for it.

    Attributes:
        deltas: whether differences to the model before may come.
        base: the last model, if it is needed again.
        spec: what the last payload looked like.
    """

    def __init__(self, accepts: tuple[str, ...], codec: Codec | None, check: Callable[[Spec], None] = lambda spec: None):
        self.codec, self.deltas = codec, False
        self.base: Base | None = None
        self.spec: Spec | None = None
        self._accepts, self._received, self._check = accepts, codec, check

    @property
    def holds(self) -> str:
        """Digest of the model that a difference may be to, or ""."""
        return self.base.digest if self.base and self.deltas else ""

    def receive(self, manifest: Manifest, body: Body, rest: Callable[[int], Body], trial: Trial) -> Parameters:
        """Return a payload, to be changed at will.

        Args:
            manifest: how the body is cut.
            body: the bytes.
            rest: asks for those behind an offset.
            trial: how often the body may break off.

        Raises:
            FedcoreError: it could not be had, or is not what it claims to be.
        """
        codec = self._codec_of(manifest.codec)
        if self.spec is None or self.spec.infos != manifest.tensors:
            spec = Spec.checked(manifest.tensors)
            self._check(spec)
            drain()  # memory for models that looked otherwise: whoever sends many kinds could make it grow without end
            self.spec = spec
        spec = self.spec
        if codec is not None:
            body = passing(Download(body, rest, trial), manifest.total_bytes, "fetch")
        parameters = spec.tie(receive(manifest, body, spec, codec, base=self.base))
        reach("fetch.done")
        if not (self.deltas or (self.codec is not None and self.codec.uses_base)):
            return parameters
        self.base = Base(manifest.digest, spec, parameters) if len(spec) else None
        return spec.copy(parameters)  # users' code may change what it is given

    def _codec_of(self, name: str) -> Codec | None:
        if self.codec is None:
            return None
        if self._received is None or self._received.name != name:
            self._received = accepted_codec(name, self._accepts)
        return self._received
