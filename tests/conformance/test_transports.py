"""Every transport passes the published suite, in every mode."""

import pytest

from fedcore import Grpc, Memory
from fedcore.testing import Faulty, check_transport
from fedcore.transports.grpc import TransferPolicy


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Memory, id="memory"),
        pytest.param(Grpc, id="grpc"),
        pytest.param(lambda: Grpc(transfer=TransferPolicy(mode="stream")), id="grpc-stream"),
        pytest.param(lambda: Grpc(transfer=TransferPolicy(threshold_bytes=100_000_000, mode="unary")), id="grpc-unary"),
        pytest.param(lambda: Grpc(chunk_bytes=4 << 20, transfer=TransferPolicy(mode="stream")), id="grpc-large-chunks"),
        pytest.param(lambda: Grpc(chunk_bytes=1 << 16, transfer=TransferPolicy(threshold_bytes=0)), id="grpc-small-chunks"),
        pytest.param(lambda: Faulty(Memory()), id="faulty-without-faults"),
    ],
)
def test_conformance(make):
    check_transport(make)


def test_unix_socket(tmp_path):
    class Unix(Grpc):
        anywhere = f"unix:{tmp_path}/fedcore.sock"

    check_transport(Unix)
