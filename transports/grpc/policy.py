"""One message or a stream: how a body travels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fedcore.errors import ConfigError
from fedcore.transports.grpc.framing import LARGEST_CHUNK


@dataclass(frozen=True)
class TransferPolicy:
    """Decides whether a body travels in one message (unary) or in chunks (a stream). Usable on its own.

    Attributes:
        threshold_bytes: larger bodies are streamed, at most 2 GB. gRPC holds a message whole before anybody can have its
            sender wait; by default messages are so small that the server takes each in at once, and its memory does not
            depend on how many clients send at the same time.
        stream_transformers: stream models whose tensor names tell a transformer, whatever their size.
        keywords: what in a tensor's name tells a transformer; case does not matter.
        mode: ``"adaptive"``; or ``"unary"`` / ``"stream"`` to switch the choice off (a body above the threshold is
            streamed in any case).
    """

    threshold_bytes: int = 1 << 20
    stream_transformers: bool = True
    keywords: tuple[str, ...] = ("transformer", "bert", "gpt", "attention")
    mode: Literal["adaptive", "unary", "stream"] = "adaptive"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold_bytes <= 2_000_000_000:
            raise ConfigError(f"TransferPolicy.threshold_bytes must be from 0 to 2 GB, not {self.threshold_bytes!r}")
        if self.mode not in ("adaptive", "unary", "stream"):
            raise ConfigError(f"TransferPolicy.mode must be 'adaptive', 'unary' or 'stream', not {self.mode!r}")

    def streams(self, nbytes: int, names: Iterable[str] = ()) -> bool:
        """Return whether a body of ``nbytes`` bytes with tensors called ``names`` is streamed."""
        if self.mode == "stream" or nbytes > self.threshold_bytes:
            return True
        return self.mode == "adaptive" and self.stream_transformers and self.is_transformer(names)

    def is_transformer(self, names: Iterable[str]) -> bool:
        """Return whether tensor names tell a transformer."""
        return any(keyword in name.lower() for name in names for keyword in self.keywords)

    @property
    def message_limit(self) -> int:
        """The largest message that is sent or taken, in bytes: the largest body or chunk, and 1 MiB for its header."""
        return max(self.threshold_bytes, LARGEST_CHUNK) + (1 << 20)
