"""The checksum of a whole message, beside it in the metadata of its call.

Chunks carry their own, and a body has its digest; this one is for all the rest: a weight or a setting in which a bit has
changed on the way would make sense to its reader. Where the other end states none, none is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import google_crc32c

from fedcore.errors import ChecksumError

_KEY = "fedcore-crc32c"


def stated(message: bytes) -> tuple[str, str]:
    """Return the metadata that states a message's CRC32C."""
    return _KEY, str(google_crc32c.value(message))


def check(message: bytes, metadata: Iterable[tuple[str, Any]] | None) -> None:
    """Check a message against what the metadata state.

    Raises:
        ChecksumError: it is another one.
    """
    claimed = next((value for key, value in metadata or () if key == _KEY), None)
    if claimed is not None and claimed != str(google_crc32c.value(message)):
        raise ChecksumError("a message changed on the way")
