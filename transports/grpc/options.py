"""Addresses, the rule about plaintext, and the options of channels and servers, each with its reason."""

from __future__ import annotations

import ipaddress
import logging
import re
from typing import TypeAlias

from fedcore.errors import AddressError

log = logging.getLogger(__name__)

Options: TypeAlias = list[tuple[str, int]]

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]|[A-Za-z0-9._-]+):(\d{1,5})")
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 120_000, 60_000
HANDSHAKE_TIMEOUT_MS = 20_000


def parse(address: str) -> str:
    """Return ``address`` as gRPC wants it.

    Raises:
        AddressError: it is not ``host:port``, ``grpc://host:port``, ``[ipv6]:port`` or ``unix:/path``.
    """
    plain = address.removeprefix("grpc://")
    if plain.startswith("unix:") and len(plain) > len("unix:"):
        return plain
    match = _HOST_PORT.fullmatch(plain)
    if not match or int(match[2]) > 65535:
        raise AddressError(
            f"address {address!r} is not host:port (such as '127.0.0.1:50051'), [ipv6]:port, grpc://host:port or unix:/path"
        )
    return plain


def is_local(address: str) -> bool:
    """Return whether ``address``, as :func:`parse` returned it, cannot be reached from another machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_plaintext(address: str, *, insecure: bool, serving: bool) -> None:
    """Check that plaintext stays on this machine, unless the user wrote that it need not.

    Raises:
        AddressError: it would not.
    """
    if is_local(address):
        return
    what = f"serve plaintext on {address}" if serving else f"send updates in plaintext to {address}"
    if insecure:
        log.warning("insecure=True: about to %s; anyone on the way can read and change models", what)
        return
    raise AddressError(
        f"refusing to {what}, which other machines can reach: anyone on the way could read and change models. "
        "Give both ends certificates, transport=Grpc(tls=TLS.kit(...)), which `fedcore pki` makes; or, on a network you trust, "
        "write transport=Grpc(insecure=True)",
        reason="INSECURE_ADDRESS",
    )


def both_ends(message_limit: int) -> Options:
    """Return the options that server and channel share."""
    return [
        ("grpc.max_send_message_length", message_limit),
        ("grpc.max_receive_message_length", message_limit),
        # a bandwidth probe only lets the receiver buffer more; without it memory is smaller at the same speed
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # pings on an idle connection are wanted, however many
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(message_limit: int) -> Options:
    """Return the options of a server."""
    return [
        *both_ends(message_limit),
        # a stranger that says nothing, or its greeting byte by byte, is sent away
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        # a second server on the same port must fail, not take half of the clients
        ("grpc.so_reuseport", 0),
        # the default, 300 s, would send an idle client away (too_many_pings) for keeping its connection alive
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
    ]


def channel_options(message_limit: int) -> Options:
    """Return the options of a channel."""
    return [
        *both_ends(message_limit),
        # channels to one target would share one connection, and a heartbeat would wait behind a model
        ("grpc.use_local_subchannel_pool", 1),
        # the client's own retries decide when to try again; the channel must not sit out two minutes first
        ("grpc.initial_reconnect_backoff_ms", 100),
        # this one is how long an attempt may take, and slow networks need some round trips for it
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_retries", 0),
    ]
