"""Addresses, and the rule that plaintext stays on this machine."""

import pytest

from fedcore import Grpc
from fedcore.errors import AddressError, ConfigError
from fedcore.transports.grpc.options import channel_options, check_plaintext, is_local, parse, server_options


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost:50051", "localhost:50051"), ("127.0.0.1:0", "127.0.0.1:0"), ("grpc://10.0.0.7:65535", "10.0.0.7:65535"),
        ("[::1]:50051", "[::1]:50051"), ("fl-server.example.org:80",) * 2,
        ("unix:/run/fl.sock", "unix:/run/fl.sock"), ("grpc://unix:/run/fl.sock", "unix:/run/fl.sock"), ("unix:rel", "unix:rel"),
    ],
)  # fmt: skip
def test_good_addresses(address, target):
    assert parse(address) == target


def test_a_link_local_address_has_a_zone():
    assert parse("[fe80::1%eth0]:5") == "[fe80::1%eth0]:5"


BAD = [
    "", "localhost", "localhost:", ":50051", "localhost:65536", "localhost:999999", "localhost:-1", "localhost:port",
    "http://localhost:1", "https://localhost:1", "dns:///localhost:1", "localhost:1/path", "a b:1", "::1:50051",
    "[::1]", "unix:", "grpc://", "localhost:1\n", "user@localhost:1", "localhost:1,otherhost:2", "localhost:5.0", "größe:1",
]  # fmt: skip


@pytest.mark.parametrize("address", BAD)
def test_bad_addresses_are_answered_with_the_forms_there_are(address):
    for call in (parse, Grpc(insecure=True).connect, lambda a: Grpc(insecure=True).listen(a, None)):
        with pytest.raises(AddressError, match=r"is not host:port .*unix:/path") as caught:
            call(address)
        assert repr(address) in str(caught.value)


LOCAL = ["localhost:1", "127.0.0.1:1", "127.255.0.9:1", "[::1]:1", "unix:/run/x"]
REMOTE = [
    "0.0.0.0:1", "[::]:1", "192.168.0.1:1", "10.0.0.1:1", "fl.example.org:1", "localhost.example.org:1",
    "127.0.0.1.example.org:1", "127.1:1", "[fe80::1]:1", "[::ffff:10.0.0.1]:1",
]  # fmt: skip


@pytest.mark.parametrize("address", LOCAL)
def test_addresses_that_stay_here(address):
    assert is_local(parse(address))
    for serving in (True, False):
        check_plaintext(address, insecure=False, serving=serving)


@pytest.mark.parametrize("address", REMOTE)
def test_w2_g1_plaintext_to_other_machines_must_be_written_out(address):
    assert not is_local(parse(address))
    with pytest.raises(AddressError) as caught:
        Grpc().listen(address, None)
    assert caught.value.reason == "INSECURE_ADDRESS"
    assert f"refusing to serve plaintext on {address}" in str(caught.value)
    assert "transport=Grpc(insecure=True)" in str(caught.value)
    with pytest.raises(AddressError) as caught:
        Grpc().connect(address)
    assert f"refusing to send updates in plaintext to {address}" in str(caught.value)
    assert "transport=Grpc(insecure=True)" in str(caught.value)


def test_w2_written_out_it_is_allowed():
    Grpc(insecure=True).connect("192.0.2.1:1").close()
    with Grpc(insecure=True).listen("0.0.0.0:0", None) as listener:
        assert listener.address.startswith("0.0.0.0:")
        assert not listener.address.endswith(":0")


@pytest.mark.parametrize(
    "options", [{"chunk_bytes": 65535}, {"chunk_bytes": (4 << 20) + 1}]
)
def test_options_that_make_no_sense_are_named(options):
    with pytest.raises(ConfigError, match=f"Grpc.{next(iter(options))}"):
        Grpc(**options)


def test_the_representation_shows_the_options():
    assert "insecure=True" in repr(Grpc(insecure=True))
    assert "chunk_bytes=65536" in repr(Grpc(chunk_bytes=65536))


def test_l12_a_port_is_not_shared():
    assert ("grpc.so_reuseport", 0) in server_options(1)


def test_l11_channels_do_not_share_a_connection():
    assert ("grpc.use_local_subchannel_pool", 1) in channel_options(1)


def test_l13_both_ends_agree_about_keepalive():
    server, channel = dict(server_options(1)), dict(channel_options(1))
    assert server["grpc.http2.min_recv_ping_interval_without_data_ms"] <= channel["grpc.keepalive_time_ms"]
    assert channel["grpc.keepalive_permit_without_calls"] == 1
    assert channel["grpc.http2.max_pings_without_data"] == 0


def test_l20_grpc_does_not_retry_by_itself():
    assert dict(channel_options(1))["grpc.enable_retries"] == 0


def test_w7_both_ends_have_the_limit_that_was_asked_for():
    for options in (server_options(12345), channel_options(12345)):
        assert dict(options)["grpc.max_receive_message_length"] == dict(options)["grpc.max_send_message_length"] == 12345
