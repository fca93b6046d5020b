"""Who may do what: one table, asked before anything else looks at a request."""

from __future__ import annotations

from fedcore.errors import PermissionDenied, Unauthenticated
from fedcore.messages import AuditQuery, Beat, Command, Fetch, Message, ModelQuery, Pull, Register, StatusQuery, Submit
from fedcore.security import Identity, Role

_ALLOWED: dict[type[Message], frozenset[Role]] = {
    **dict.fromkeys((Register, Pull, Fetch, Submit, Beat), frozenset({Role.CLIENT})),
    StatusQuery: frozenset({Role.CLIENT, Role.OPERATOR, Role.ADMIN}),
    **dict.fromkeys((ModelQuery, AuditQuery), frozenset({Role.OPERATOR, Role.ADMIN})),
    Command: frozenset({Role.ADMIN}),
}
_HERE_ALONE = AuditQuery | Command  # where nobody is verified


def check_access(peer: Identity, message: Message, *, share_model: bool = False) -> None:
    """Check that a peer may ask for something.

    Where the transport verifies nobody, everybody may ask for everything, but only from this machine for what admins do and
    for the audit log.

    Args:
        peer: who asks, as the transport verified it.
        message: for what.
        share_model: whether clients, too, may have the last model as a whole.

    Raises:
        Unauthenticated: nobody knows who it is.
        PermissionDenied: it has no such right, or speaks for somebody else.
    """
    if peer.revoked:
        raise PermissionDenied(f"this {peer.revoked} was revoked", reason="REVOKED")
    if peer.role is None and (peer.is_here or not isinstance(message, _HERE_ALONE)):
        return
    if peer.role is None:
        what = "is told what to do" if isinstance(message, Command) else "shows its audit log"
        raise Unauthenticated(f"without certificates a server {what} from its own machine only")
    if peer.role is Role.ANONYMOUS:
        unknown = "this server knows its peers by certificates or tokens, and you have shown none that is good"
        raise Unauthenticated(peer.problem or unknown)
    shared = share_model and peer.role is Role.CLIENT and isinstance(message, ModelQuery)
    if peer.role not in _ALLOWED.get(type(message), ()) and not shared:
        raise PermissionDenied(f"{peer.role} {peer.name!r} may not ask for {type(message).__name__}")
    claimed = claimed_by(message)
    if claimed and claimed != peer.name:
        shown = claimed if len(claimed) <= 64 else claimed[:61] + "..."
        raise PermissionDenied(f"{peer.name!r} may not speak for {shown!r}", reason="IDENTITY_MISMATCH")


def claimed_by(message: Message) -> str:
    """Return the client that a message says it comes from, or ""."""
    if isinstance(message, Register):
        return message.client_id
    session = getattr(message, "session", None)
    return session.client_id if session is not None else ""
