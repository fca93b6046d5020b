"""Errors and outcomes to gRPC statuses and back: the one border where they are translated.

A status carries ``google.rpc.ErrorInfo``: ``reason`` is the name of the error, ``domain`` is ``fedcore``, and for a refused
update the metadata hold the outcome and the server's current round. Where there is no sense in trying again before some time,
``google.rpc.RetryInfo`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fedcore.errors import (
    AccessError,
    ChecksumError,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    FedcoreError,
    OutOfStorage,
    ProtocolError,
    RemoteError,
    SessionError,
    TooLarge,
    TooMany,
    TooOften,
    Unauthenticated,
    UpdateRejected,
    from_reason,
    printable,
)
from fedcore.messages import Directive, Outcome, Submitted

D = TypeVar("D", bound=Message)

DETAILS = "grpc-status-details-bin"
_DOMAIN = "fedcore"
_LONGEST_MESSAGE = 1024
_LONGEST_PAUSE = 86400.0  # seconds
_DISTRUST = ("CERTIFICATE_VERIFY_FAILED", "certificate signature failure", "Hostname Verification Check failed")
"""What gRPC says of a server with a certificate that is not good; of a damaged handshake it says other things."""

_BY_REASON = {
    "BAD_OFFSET": grpc.StatusCode.OUT_OF_RANGE,
    "NO_COMMON_CODEC": grpc.StatusCode.FAILED_PRECONDITION,
    "PROTOCOL_VERSION": grpc.StatusCode.FAILED_PRECONDITION,
    "BASE_MISMATCH": grpc.StatusCode.FAILED_PRECONDITION,
    "ROUND_ALREADY_ANSWERED": grpc.StatusCode.ALREADY_EXISTS,
    "NOT_SELECTED": grpc.StatusCode.PERMISSION_DENIED,
    "NO_MODEL": grpc.StatusCode.FAILED_PRECONDITION,
    "NO_AUDIT_LOG": grpc.StatusCode.FAILED_PRECONDITION,
    "INCOMPLETE": grpc.StatusCode.INVALID_ARGUMENT,
    "CHECKSUM": grpc.StatusCode.DATA_LOSS,
    "TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STALLED_STREAM": grpc.StatusCode.DEADLINE_EXCEEDED,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
_BY_OUTCOME = {
    Outcome.STALE: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.FUTURE: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.CLOSED: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.NOT_SELECTED: grpc.StatusCode.PERMISSION_DENIED,
}
_BY_ERROR: list[tuple[type[FedcoreError], grpc.StatusCode]] = [
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (AccessError, grpc.StatusCode.PERMISSION_DENIED),
    (SessionError, grpc.StatusCode.FAILED_PRECONDITION),
    (ChecksumError, grpc.StatusCode.DATA_LOSS),
    (TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooOften, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooMany, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (OutOfStorage, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UpdateRejected, grpc.StatusCode.INVALID_ARGUMENT),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConnectionLost, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
]


def of_error(error: FedcoreError) -> status_pb2.Status:
    """Return the status of an error."""
    code = _BY_REASON.get(error.reason) or next((c for kind, c in _BY_ERROR if isinstance(error, kind)), None)
    return _status(code or grpc.StatusCode.INTERNAL, error.reason, str(error), {}, error.retry_after)


def of_outcome(refused: Submitted) -> status_pb2.Status:
    """Return the status of an update that is not part of the round."""
    code = _BY_REASON.get(refused.reason) or _BY_OUTCOME.get(refused.outcome) or grpc.StatusCode.INVALID_ARGUMENT
    metadata = {"outcome": refused.outcome.value, "round": str(refused.round), "directive": refused.directive.value}
    return _status(code, refused.reason, refused.message, metadata)


def outcome_of(error: grpc.RpcError) -> Submitted | None:
    """Return the outcome that a status carries, if it does."""
    info = _info(error)
    if info is None or "outcome" not in info.metadata:
        return None
    try:
        outcome, directive = Outcome(info.metadata["outcome"]), Directive(info.metadata.get("directive", "continue"))
        return Submitted(outcome, info.reason, error.details() or "", int(info.metadata.get("round", "0")), directive)
    except ValueError as unknown:
        text = f"the server sent an outcome this client does not know: {unknown!s:.80}"
        raise ProtocolError(text, reason="UNKNOWN_ENUM") from None


def error_of(error: grpc.RpcError, address: str) -> FedcoreError:
    """Return the FedcoreError that a failed call stands for."""
    code, text = error.code(), error.details() or ""
    if info := _info(error):
        return from_reason(info.reason, text, _pause(error))
    if code is grpc.StatusCode.UNAVAILABLE and _is_distrust(error):
        return Unauthenticated(f"{address} is not, or cannot show that it is, the server that was meant: {text}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ConnectionLost(f"{address} cannot be reached: {text}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{address} did not answer in time")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(f"{address} refused the size of a message: {text}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ProtocolError(f"{address} is no fedcore server, or one of another version: {text}")
    return RemoteError(f"{address} failed: {code.name}: {text}")


def is_lost(error: grpc.RpcError) -> bool:
    """Return whether a call failed because its connection did: no server said so."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and _info(error) is None and not _is_distrust(error)


def _is_distrust(error: grpc.RpcError) -> bool:
    return any(mark in (error.details() or "") for mark in _DISTRUST)


def code_and_trailer(status: status_pb2.Status) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return a status as ``context.abort`` takes it."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return code, status.message, ((DETAILS, status.SerializeToString()),)


def _status(
    code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str], retry_after: float | None = None
) -> status_pb2.Status:
    details = [any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN, metadata=metadata))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(math.ceil(retry_after * 1e6))
        details.append(any_pb2.Any())
        details[1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    text = printable(message, _LONGEST_MESSAGE)
    return status_pb2.Status(code=code_pb2.Code.Value(code.name), message=text, details=details)


def _info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    return next((info for info in _details(error, error_details_pb2.ErrorInfo) if info.domain == _DOMAIN), None)


def _pause(error: grpc.RpcError) -> float | None:
    """Return how many seconds the server wants to be left alone for, if it said so."""
    for info in _details(error, error_details_pb2.RetryInfo):
        seconds: float = info.retry_delay.ToMicroseconds() / 1e6
        return min(max(0.0, seconds), _LONGEST_PAUSE)
    return None


def _details(error: grpc.RpcError, kind: type[D]) -> Iterator[D]:
    """Yield what a failed call carries of a kind; what cannot be read is some other server's: the code alone must do."""
    trailers: Any = error.trailing_metadata() or ()
    packed = next((value for key, value in trailers if key == DETAILS), None)
    if isinstance(packed, bytes):
        with suppress(ProtobufError):
            for detail in status_pb2.Status.FromString(packed).details:
                found = kind()
                if detail.Unpack(found):
                    yield found
