"""Every error fedcore raises on purpose, and whose fault each is.

::

    FedcoreError
    ├── ConfigError (ValueError)        yours: an argument or a configuration, before anything runs
    │   ├── AddressError                an address that cannot be parsed, bound or used safely
    │   ├── UnknownName                 a codec, transport or strategy that no shelf has
    │   └── MissingDependency           an optional library is not installed
    ├── UpdateRejected                  the client's: what it sent may not be counted
    │   ├── SchemaMismatch              a tensor is missing, extra, misshapen or mistyped
    │   ├── NonFinite                   a tensor holds NaN or infinity
    │   ├── InvalidWeight               num_examples is not a positive, plausible number
    │   ├── BadMetric                   a metric is not a number, or there are too many
    │   └── OutOfRange                  a value the exact sum cannot represent
    ├── ProtocolError                   the peer's: it broke the contract of the wire
    │   ├── DecodeError                 bytes that are not what they claim to be
    │   ├── ChecksumError               bytes that changed on the way (retryable)
    │   └── CodecRefused                a codec this side does not accept
    ├── SessionError                    the peer is not who the server thinks, or not any more
    │   ├── NotRegistered               register (again), then retry
    │   ├── Fenced                      a newer process took over this client_id
    │   └── RunChanged                  the server runs another federation now
    ├── AccessError                     the peer's: it may not do this
    │   ├── Unauthenticated             the transport could not verify who it is
    │   └── PermissionDenied            who it is may not do that
    ├── SiteRefused                     the server's: it asks for what this site's own policy does not allow
    ├── TransportError                  nobody's: the network
    │   ├── ConnectionLost (ConnectionError)   retryable
    │   ├── DeadlineExceeded (TimeoutError)    retryable
    │   ├── Incomplete              a body that ended before it was whole (retryable)
    │   ├── TooLarge                    a message above the limit
    │   ├── TooOften                    the same was asked for too often (retryable, later)
    │   ├── TooMany                     too much of it is under way at once (retryable, later)
    │   └── OutOfStorage                the receiver has no room for a message now (retryable, later)
    ├── StateError                      the operator's: a state directory that is damaged, foreign or in use
    ├── AggregationError                the strategy's: no model came out of the round
    ├── RunFailed                       the federation ended without reaching its goal
    ├── RunSuspended                    nobody's: this server left, and the next one goes on with the run
    └── RemoteError                     the other side failed in a way it does not explain

``reason`` is the machine-readable name that travels in ``google.rpc.ErrorInfo``; ``retryable`` says whether the same
call may succeed if it is made again, and ``retry_after`` before which time there is no sense in that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class FedcoreError(Exception):
    """Root of all errors fedcore raises on purpose.

    Attributes:
        reason: its machine-readable name.
        retryable: whether the same call may succeed if it is made again.
        retry_after: seconds to wait before that; None: nobody said so.
    """

    reason: str = "FEDCORE_ERROR"
    retryable: ClassVar[bool] = False
    retry_after: float | None = None

    def __init__(self, message: str = "", *, reason: str | None = None, retry_after: float | None = None):
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        if retry_after is not None:
            self.retry_after = retry_after


class ConfigError(FedcoreError, ValueError):
    """An argument or a configuration that cannot work; raised before anything runs."""

    reason = "BAD_CONFIG"


class AddressError(ConfigError):
    """An address that cannot be parsed, bound or used safely."""

    reason = "BAD_ADDRESS"


class UnknownName(ConfigError):
    """A codec, transport or strategy that no shelf has."""

    reason = "UNKNOWN_NAME"


class MissingDependency(ConfigError):
    """An optional library is not installed; the message says what to install."""

    reason = "MISSING_DEPENDENCY"


class UpdateRejected(FedcoreError):
    """What a client sent may not be counted; the round and the other clients are unaffected."""

    reason = "REJECTED"


class SchemaMismatch(UpdateRejected):
    """A tensor is missing, extra, misshapen or mistyped; the message names the first."""

    reason = "SCHEMA_MISMATCH"


class NonFinite(UpdateRejected):
    """A tensor holds NaN or infinity; the message names it."""

    reason = "NON_FINITE"


class InvalidWeight(UpdateRejected):
    """``num_examples`` is not an integer from 1 to the configured cap."""

    reason = "INVALID_WEIGHT"


class BadMetric(UpdateRejected):
    """A metric or config value that is not a scalar, or too many of them."""

    reason = "BAD_METRIC"


class OutOfRange(UpdateRejected):
    """A value beyond what the exact sum represents; the message names the tensor and the bound."""

    reason = "OUT_OF_RANGE"


class ProtocolError(FedcoreError):
    """The peer broke the contract of the wire."""

    reason = "PROTOCOL_ORDER"


class DecodeError(ProtocolError):
    """Bytes that are not what they claim to be; the only error a codec's ``decode`` raises."""

    reason = "MALFORMED"


class ChecksumError(ProtocolError):
    """Bytes that changed on the way."""

    reason = "CHECKSUM"
    retryable = True


class CodecRefused(ProtocolError):
    """A codec that this side has not been told to accept."""

    reason = "NO_COMMON_CODEC"


class SessionError(FedcoreError):
    """The server does not know the caller as it presents itself."""

    reason = "BAD_SESSION"


class NotRegistered(SessionError):
    """The client is not registered, or its lease ran out: register again."""

    reason = "NOT_REGISTERED"


class Fenced(SessionError):
    """A newer process registered under the same ``client_id``; this one must end."""

    reason = "FENCED"


class RunChanged(SessionError):
    """The server runs another federation than the one the client joined."""

    reason = "RUN_CHANGED"


class AccessError(FedcoreError):
    """The peer may not do what it asks for; nothing was done."""

    reason = "ACCESS"


class Unauthenticated(AccessError):
    """The transport could not verify who the peer is: a certificate or a token is missing, or not good."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(AccessError):
    """Who the peer is may not do that; ``IDENTITY_MISMATCH``: not for somebody else, ``REVOKED``: nothing any more."""

    reason = "PERMISSION_DENIED"


class SiteRefused(FedcoreError):
    """The server asks for what this site's own :class:`~fedcore.SitePolicy` does not allow; nothing left the site."""

    reason = "SITE_REFUSED"


class TransportError(FedcoreError):
    """The network failed, or a message could not be carried."""

    reason = "TRANSPORT"


class ConnectionLost(TransportError, ConnectionError):
    """The other side cannot be reached."""

    reason = "CONNECTION_LOST"
    retryable = True


class DeadlineExceeded(TransportError, TimeoutError):
    """No answer came in time."""

    reason = "DEADLINE_EXCEEDED"
    retryable = True


class Incomplete(TransportError):
    """A body that ended before it was whole: to the receiver, a sender that breaks off and one that stops look the same."""

    reason = "INCOMPLETE"
    retryable = True


class TooLarge(TransportError):
    """A message above the limit of the transport."""

    reason = "TOO_LARGE"


class TooOften(TransportError):
    """The same was asked for too often in a short time; ``retry_after`` says when it may be again."""

    reason = "RATE"
    retryable = True


class TooMany(TransportError):
    """A peer has as much of this under way as it may have at once."""

    reason = "QUOTA"
    retryable = True
    retry_after = 1.0


class OutOfStorage(TransportError):
    """The receiver has no room for a message now."""

    reason = "OUT_OF_STORAGE"
    retryable = True
    retry_after = 1.0


class StateError(FedcoreError):
    """A state directory that is damaged, of another program or version, or in use; the message says what to do."""

    reason = "STATE"


class AggregationError(FedcoreError):
    """The strategy produced no usable model from a round's updates."""

    reason = "AGGREGATION"


class RunFailed(FedcoreError):
    """The federation ended without reaching its goal."""

    reason = "RUN_FAILED"


class RunSuspended(FedcoreError):
    """The server left a run that goes on when another one starts with the same state directory."""

    reason = "RUN_SUSPENDED"


class RemoteError(FedcoreError):
    """The other side failed in a way it does not explain; its log has the details."""

    reason = "INTERNAL"


def _tree(root: type[FedcoreError]) -> Iterator[type[FedcoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_FINER: dict[str, type[FedcoreError]] = {
    "BAD_CLIENT_ID": ConfigError,
    "INSECURE_ADDRESS": AddressError,
    "IDENTITY_MISMATCH": PermissionDenied,
    "REVOKED": PermissionDenied,
    "EVICTED": PermissionDenied,
    "NO_SUCH_CLIENT": ProtocolError,
    "NO_MODEL": ProtocolError,
    "NO_AUDIT_LOG": ProtocolError,
    "BAD_DTYPE": SchemaMismatch,
    "TOO_MANY_FIELDS": BadMetric,
    "BAD_OFFSET": ProtocolError,
    "BASE_MISMATCH": UpdateRejected,
    "ROUND_ALREADY_ANSWERED": UpdateRejected,
    "LENGTH_MISMATCH": DecodeError,
    "UNDECODABLE": DecodeError,
    "BAD_TYPE": DecodeError,
    "PROTOCOL_VERSION": ProtocolError,
    "NOT_SELECTED": ProtocolError,
    "EMPTY_STREAM": ProtocolError,
    "BAD_SEQUENCE": ProtocolError,
    "BAD_CHUNK_SIZE": ProtocolError,
    "UNKNOWN_ENUM": ProtocolError,
    "STALLED_STREAM": DeadlineExceeded,
    "STATE_DAMAGED": StateError,
    "STATE_LOCKED": StateError,
    "STATE_UNSAFE": StateError,
    "AUDIT_BROKEN": StateError,
    "AUDIT_CUT": StateError,
}
"""Reasons finer than a class, and the class that carries them."""


def from_reason(reason: str, message: str, retry_after: float | None = None) -> FedcoreError:
    """Rebuild the error that ``reason`` names, as a border does with one that crossed a wire.

    Reasons finer than a class keep their own name on the class that carries them; unknown ones become :class:`RemoteError`.
    """
    if finer := _FINER.get(reason):
        return finer(message, reason=reason, retry_after=retry_after)
    for kind in _tree(FedcoreError):
        if kind.reason == reason:
            return kind(message, retry_after=retry_after)
    return RemoteError(message, reason=reason, retry_after=retry_after)


def printable(text: str, most: int) -> str:
    r"""Return the beginning of a text that somebody else may have written, fit for a log.

    >>> printable("lost\x1b[2J", 8)
    'lost\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
