"""Every example runs as it stands and says what it should."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ALONE = {
    "quickstart.py": "y = 3.0",
    "unit_test.py": "passed",
    "custom_strategy.py": "between the clients' goals",
    "custom_codec.py": "safetensors+half: 4144 bytes received",
    "async_fedbuff.py": "times as fast",
    "personalised.py": "FedPer   8 tensors travel",
    "custom_transport.py": "requests went by, the model is [3.0, 3.0, 3.0]",
    "lora_finetune.py": "its adapters: 32,",
    "zeroth_order.py": "DeComFL: 664 bytes per client and round",
    "byzantine.py": "Multi-Krum: 0.9",
}


def start(name, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outputs(processes, patience=90):
    """Wait for all processes and return what each printed."""
    try:
        printed = [process.communicate(timeout=patience)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return printed


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


LONG = {"async_fedbuff.py", "personalised.py", "lora_finetune.py", "zeroth_order.py"}  # they train for some time
TAKES_LONG = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", [pytest.param(each, marks=TAKES_LONG) if each in LONG else each for each in ALONE])
def test_alone(name, tmp_path):
    if name in ("lora_finetune.py", "zeroth_order.py"):
        pytest.importorskip("peft", reason="pip install 'fedcore[hf]'")
    assert ALONE[name] in outputs([start(name, cwd=tmp_path)], 500)[0]


def test_digits_in_three_processes(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    printed = outputs([
        start("digits_server.py", address, cwd=tmp_path),
        *(start("digits_client.py", str(index), address, cwd=tmp_path) for index in (0, 1)),
    ])  # fmt: skip
    accuracy = float(printed[0].rsplit("accuracy ", 1)[1].split(";")[0])
    assert accuracy > 0.9
    assert len(load_file(tmp_path / "digits.safetensors")) == 12


def test_quickstart_over_grpc(tmp_path):
    printed = outputs([
        start("quickstart.py", "server", cwd=tmp_path),
        *(start("quickstart.py", "client", name, cwd=tmp_path) for name in ("1", "2")),
    ])  # fmt: skip
    assert "y = 3.0" in printed[0]


def test_every_example_is_tested_and_the_quickstart_is_short():
    tested = {*ALONE, "digits_server.py", "digits_client.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 40
