"""Who is at the other end, as the transport verified it: never as a message claims."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The peer of one request.

    Attributes:
        address: where it speaks from, for the log.
        name: the client id that the transport verified, or "" when the transport verifies nobody.
        by_reference: the peer lives in this process and may be handed objects instead of bytes.
    """

    address: str = ""
    name: str = ""
    by_reference: bool = False
