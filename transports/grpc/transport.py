"""The gRPC transport as users configure it."""

from __future__ import annotations

from fedcore.errors import ConfigError
from fedcore.limits import Limits
from fedcore.security import TLS
from fedcore.tokens import Tokens
from fedcore.transport import Connection, Handler, Listener, Transport
from fedcore.transports.grpc.client import GrpcConnection
from fedcore.transports.grpc.framing import LARGEST_CHUNK, SMALLEST_CHUNK
from fedcore.transports.grpc.options import check_plaintext, parse
from fedcore.transports.grpc.policy import TransferPolicy
from fedcore.transports.grpc.server import GrpcListener

CHUNK_BYTES = 1 << 20
"""1 MiB: larger chunks (the reference design has 50 MB) leave the allocator's fast path and cost a factor of 3 to 5."""


class Grpc(Transport):
    """Carries requests over gRPC.

    Args:
        transfer: when a body is streamed.
        chunk_bytes: size of a chunk of a stream, 64 KiB to 4 MiB. Smaller ones suit links below 1 Mbit/s.
        tls: the certificates of this end; connections are encrypted then, and both ends know who the other is.
        tokens: for a server, the tokens that it knows its clients by, instead of certificates or beside them.
        token: for a client, the file of its token, readable by its owner alone; it is read again when it changes.
        insecure: allow plaintext on addresses that other machines can reach.

    Raises:
        ConfigError: an argument makes no sense.
    """

    anywhere = "127.0.0.1:0"

    def __init__(
        self,
        *,
        transfer: TransferPolicy | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        tls: TLS | None = None,
        tokens: Tokens | None = None,
        token: str | None = None,
        insecure: bool = False,
    ):
        if not SMALLEST_CHUNK <= chunk_bytes <= LARGEST_CHUNK:
            raise ConfigError(f"Grpc.chunk_bytes must be from 64 KiB to 4 MiB, not {chunk_bytes!r}")
        if tls is not None and insecure:
            raise ConfigError("Grpc: insecure=True is for plaintext; with tls there is none")
        if tls is None and (tokens is not None or token is not None):
            raise ConfigError("Grpc: who reads a token can use it, so that tokens need tls=TLS(...), on this machine, too")
        self.transfer, self.tls, self.tokens, self.token = transfer or TransferPolicy(), tls, tokens, token
        self.chunk_bytes, self.insecure = chunk_bytes, insecure

    def listen(self, address: str, handler: Handler, limits: Limits = Limits()) -> Listener:
        """Serve at ``host:port`` or ``unix:/path``."""
        target = parse(address)
        if self.tls is None:
            check_plaintext(target, insecure=self.insecure, serving=True)
        return GrpcListener(
            target, handler, transfer=self.transfer, chunk_bytes=self.chunk_bytes, limits=limits, tls=self.tls,
            tokens=self.tokens,
        )  # fmt: skip

    def connect(self, address: str, limits: Limits = Limits()) -> Connection:
        """Prepare to speak to ``host:port`` or ``unix:/path``."""
        target = parse(address)
        if self.tls is None:
            check_plaintext(target, insecure=self.insecure, serving=False)
        return GrpcConnection(
            target, transfer=self.transfer, chunk_bytes=self.chunk_bytes, limits=limits, tls=self.tls, token=self.token
        )

    def __repr__(self) -> str:
        return (
            f"Grpc(transfer={self.transfer!r}, chunk_bytes={self.chunk_bytes}, tls={self.tls!r}, tokens={self.tokens!r}, "
            f"insecure={self.insecure})"
        )
