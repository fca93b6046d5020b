"""How a command reaches a server: the options that say so, and the connection they make."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from fedcore.errors import ConfigError, FedcoreError

if TYPE_CHECKING:
    from fedcore.messages import Answer, Message
    from fedcore.transport import Connection

__all__ = ["add_options", "ask", "connect"]

_ANSWER_TIMEOUT = 5.0  # seconds

A = TypeVar("A", bound="Answer")


def add_options(parser: argparse.ArgumentParser, *, bearer: str) -> None:
    """Add what every command takes that asks a server for something; ``bearer`` is whose kit it takes."""
    parser.add_argument("address", metavar="ADDRESS", help="where the server listens, such as localhost:50051")
    parser.add_argument("--transport", default="grpc", help="the server's transport (default %(default)s)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--tls-kit", metavar="DIR", help=f"the kit of {bearer} (see fedcore pki)")
    how.add_argument("--tls-authority", metavar="FILE", help="the certificate of who signed the server's; for tokens")
    how.add_argument("--insecure", action="store_true", help="speak plaintext to other machines, too")
    parser.add_argument("--token", metavar="FILE", help=f"the token of {bearer} (see fedcore keys)")


def connect(chosen: argparse.Namespace) -> Connection:
    """Return a connection to the server that was named.

    Raises:
        ConfigError: an option is of no use here, or a file of the kit is not there.
        AddressError: the address is malformed, or not safe to speak to.
    """
    from fedcore.registry import find
    from fedcore.security import TLS

    kind = find("transports", chosen.transport)
    options: dict[str, Any] = {"insecure": True} if chosen.insecure else {}
    if chosen.tls_kit is not None:
        options["tls"] = TLS.kit(chosen.tls_kit)
    if chosen.tls_authority is not None:
        options["tls"] = TLS(authority=chosen.tls_authority)
    if chosen.token is not None:
        if "tls" not in options:
            raise ConfigError("--token needs --tls-authority (or --tls-kit): who reads a token can use it")
        options["token"] = chosen.token
    for option in options:
        if option not in inspect.signature(kind).parameters:
            raise ConfigError(f"transport {chosen.transport!r} has no option {option!r}")
    connection: Connection = kind(**options).connect(chosen.address)
    return connection


def ask(connection: Connection, message: Message, kind: type[A], timeout: float = _ANSWER_TIMEOUT) -> A:
    """Ask for something, and return the answer, which is of one kind and comes within ``timeout`` seconds.

    Raises:
        FedcoreError: it is of another, or the server refused.
    """
    reply = connection.request(message, timeout=timeout).message
    if not isinstance(reply, kind):
        raise FedcoreError(f"the server answered with {type(reply).__name__}")
    return reply
