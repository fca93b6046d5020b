"""The complete server and client examples of the reference design run as they stand, over real gRPC, in processes of their own.

Only their import lines differ, and the transport that the server's address, 0.0.0.0 in plaintext, asks for.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent / "reference"
COMMAND = [sys.executable, str(HERE / "prelude.py")]


def free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def run(example, *arguments, cwd):
    # one thread each: six processes with two threads each would fight over a small machine
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, str(HERE / example), *arguments], cwd=cwd, env=environment)


def test_they_run_verbatim(tmp_path):
    assert free(50051), "the examples name port 50051, and something on this machine has it"
    processes = [run("server_example.py", cwd=tmp_path)]
    processes += [run("client_example.py", f"client_{index}", cwd=tmp_path) for index in range(1, 6)]
    try:
        assert [process.wait(90) for process in processes] == [0] * 6
    finally:
        for process in processes:
            process.kill()
            process.wait()
    final = torch.load(tmp_path / "final_model.pt", weights_only=True)
    assert next(iter(final)) == "conv.weight"
    assert int(final["norm.num_batches_tracked"]) == 10 * 5 * 2  # rounds x epochs x batches


def test_they_differ_from_the_reference_in_their_imports_alone():
    server, client = [(HERE / f"{name}_example.py").read_text() for name in ("server", "client")]
    assert 'server_address="0.0.0.0:50051"' in server
    assert server.count("Grpc") == 2
    assert "from fedcore import Client, start_client\n" in client
    assert client.count("fedcore") == 1
