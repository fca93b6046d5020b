"""gRPC: the primary transport, over TCP or Unix sockets.

Address form: ``host:port``, ``grpc://host:port``, ``[::1]:port`` or ``unix:/path/to/socket``; port 0 takes a free one.

Options: see :class:`Grpc`.

Guarantees: a body arrives whole, in order and with every chunk's checksum verified, or reading it raises; a stream that breaks
off is gone on with. Heartbeats have a connection of their own. A thousand waiting clients cost the server no thread. With
``tls`` both ends know each other by their certificates; plaintext leaves this machine only if ``insecure=True`` is written out.

Limits: a body larger than the unary threshold travels as a stream of chunks, of any total size.
"""

from __future__ import annotations

import gc
import os

# gRPC would start its threads again in every process that is forked, on what they share with the parent, which can end either.
# A DataLoader forks for each of its workers. Whoever wants to speak gRPC in a forked process must start it anew ("spawn").
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Nor can a forked process let go of a connection that is garbage: it would wait for threads that only the parent has.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)

from fedcore.transports.grpc.policy import TransferPolicy  # grpc reads the variable when it is imported
from fedcore.transports.grpc.transport import Grpc

__all__ = ["Grpc", "TransferPolicy"]
