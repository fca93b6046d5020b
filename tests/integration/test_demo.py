"""The demo, as people start it: real processes, real gRPC, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from fedcore.data.digits import DigitsModel, evaluate, load_digits
from fedcore.demo import Options, run, summary
from fedcore.errors import ConfigError, MissingDependency
from fedcore.replay import look

COMMAND = [sys.executable, "-m", "fedcore", "demo", "--rounds", "3", "--clients", "2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo: what it printed and the folder it left, in which there was a file of an earlier run."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "out"
    folder.mkdir(parents=True)
    (folder / "client-9.log").write_text("old")
    done = subprocess.run([*COMMAND, "--out", folder], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, folder


def test_every_round_has_a_line(demo):
    printed, _ = demo
    pattern = r"^round \d/3  loss \d\.\d{3}  accuracy \d\.\d{3}  2 clients  .* s  \d+\.\d kB$"
    assert len(re.findall(pattern, printed, re.MULTILINE)) == 3


def test_the_summary(demo):
    printed, folder = demo
    assert "  rounds     3 committed, none failed\n" in printed
    assert f"  history    {folder}/history.json, history.png\n" in printed
    assert printed.splitlines()[-2].split()[::2] == ["client-1", "3"]


def test_the_history(demo):
    record = json.loads((demo[1] / "history.json").read_text())
    assert [each["outcome"] for each in record["rounds"]] == ["committed"] * 3
    assert all(each["accepted"] == ["client-1", "client-2"] for each in record["rounds"])
    assert record["options"]["clients"] == 2
    assert sum(client["examples"] for client in record["clients"].values()) == 1437
    assert record["digest"] == record["rounds"][-1]["digest"]


def test_the_model_is_what_the_history_says(demo):
    record = json.loads((demo[1] / "history.json").read_text())
    parameters = load_file(demo[1] / "model.safetensors")
    assert parameters.keys() == DigitsModel().state_dict().keys()
    loss, metrics = evaluate(parameters, load_digits(seed=0)[1])
    assert metrics["accuracy"] == pytest.approx(record["rounds"][-1]["metrics"]["accuracy"])
    assert loss == pytest.approx(record["rounds"][-1]["metrics"]["loss"], rel=1e-4)
    assert metrics["accuracy"] > 0.9


def test_the_folder_holds_this_run_and_nothing_else(demo):
    names = sorted(path.name for path in demo[1].iterdir())
    logs = ["client-1.log", "client-2.log"]
    assert names == [*logs, "history.json", "history.png", "model.safetensors", "server.log"]
    assert (demo[1] / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "examples, by digit: [" in (demo[1] / "client-1.log").read_text()


def test_a_server_that_cannot_begin_is_reported_with_its_log(tmp_path):
    done = subprocess.run([*COMMAND, "--out", tmp_path, "--codec", "zip"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"fedcore demo: server failed with exit status 1; the end of {tmp_path}/server.log:\n" in done.stderr
    assert "    UnknownName: codecs has no 'zip'" in done.stderr
    assert not (tmp_path / "history.json").exists()


def test_an_interrupt_ends_everything(tmp_path):
    # a shell's background jobs ignore the interrupt, and what they start inherits that
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = f"{heed}import sys; from fedcore.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *COMMAND[3:], "--rounds", "10000", "--out", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            while not running.stdout.readline().startswith("run run-"):
                assert running.poll() is None
            running.send_signal(signal.SIGINT)
            rest, _ = running.communicate(timeout=30)  # which ends when every process has closed its end
        finally:
            running.kill()
    assert running.returncode == 130
    assert "Traceback" not in rest


def test_it_needs_scikit_learn(monkeypatch, tmp_path):
    monkeypatch.setattr("fedcore.demo.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedcore\[demo\]'"):
        run(Options(out=os.fspath(tmp_path)))


def test_the_server_is_killed_and_the_run_goes_on_to_the_same_model(demo, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.db").write_text("of an earlier run")
    command = [*COMMAND, "--kill-server-at-round", "2", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    killed = lines.index("The server was killed in round 2. Another process takes its place; the clients stay.")
    assert re.fullmatch(r"run run-\w+ at 127.0.0.1:\d+, 3 rounds", lines[killed + 1])
    assert lines[killed + 1] == next(line for line in lines if line.startswith("run run-"))
    assert re.fullmatch(r"goes on with round 2 \([12] of 2 updates\)", lines[killed + 2])
    assert [line[:9] for line in lines if re.match(r"round \d/", line)] == ["round 1/3", "round 2/3", "round 3/3"]
    assert "  server     killed in round 2, and started again" in lines
    record, without = (json.loads((folder / "history.json").read_text()) for folder in (tmp_path, demo[1]))
    assert [each["digest"] for each in record["rounds"]] == [each["digest"] for each in without["rounds"]]
    assert all(each["accepted"] == ["client-1", "client-2"] for each in record["rounds"])
    assert record["clients"] == without["clients"]
    logs = ["client-1.log", "client-2.log", "server-again.log", "server.log"]
    made = ["history.json", "history.png", "model.safetensors", "state"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(logs + made)
    assert [page.state for page in look(tmp_path / "state").pages()] == ["committed"] * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0}, {"clients": 1}, {"alpha": 0.0}, {"seed": -1}, {"kill_server_at_round": 0},
        {"rounds": 3, "kill_server_at_round": 4},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(wrong):
    with pytest.raises(ConfigError):
        Options(**wrong)


def test_the_summary_tells_of_what_went_wrong():
    committed = {"number": 1, "outcome": "committed", "reason": "", "missing": {"client-2": "silent for 10 s"}, "seconds": 1.0}
    committed |= {"metrics": {"loss": 0.5, "fit/loss": 1.0}, "bytes_sent": 1000, "bytes_received": 2000}
    failed = committed | {"number": 2, "outcome": "failed", "reason": "no quorum", "missing": {}, "metrics": {}}
    record = {"rounds": [committed, failed], "digest": "ab" * 32, "picture": False, "clients": {}}
    assert summary(Options(), record, 3.0).splitlines() == [
        "",
        "  loss       0.5000",
        "  rounds     1 committed, 1 failed",
        "  time       2.00 s in rounds, 3.00 s in all",
        "  traffic    2.0 kB to clients, 4.0 kB back, as safetensors",
        "  model      runs/demo/model.safetensors, digest abababababababab",
        "  history    runs/demo/history.json",
        "",
        "  client     examples  updates",
        "  round 1 went on without client-2: silent for 10 s",
        "  round 2 failed: no quorum",
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_with_another_codec_too(demo, tmp_path):
    more = ["--rounds", "2", "--codec", "safetensors+lz4", "--out", tmp_path]
    done = subprocess.run([*COMMAND, *more], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    first, again = (json.loads((folder / "history.json").read_text())["rounds"] for folder in (demo[1], tmp_path))
    assert [each["digest"] for each in again] == [each["digest"] for each in first[:2]]
