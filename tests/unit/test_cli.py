"""The command: what it prints, what it imports, and how it ends."""

import json
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress

import pytest
import torch

from fedcore import FedAvg, Grpc, Memory, Server, ServerConfig, __version__
from fedcore.cli import main
from fedcore.errors import ConnectionLost, FedcoreError, RunFailed
from fedcore.messages import Beat, Register, ServerStatus, Status, Wait
from fedcore.transport import Reply


@pytest.fixture
def server():
    """A server with one client that said that it trains."""
    config = ServerConfig(num_rounds=3, stop_grace=0.0)
    with Server("127.0.0.1:0", config=config, strategy=FedAvg({"w": torch.zeros(2)})) as server:
        with Grpc().connect(server.address) as connection:
            session = connection.request(Register("client-1", accepts=("safetensors",)), timeout=10.0).message.session
            connection.request(Beat(session, Status.TRAINING, 3, 9, 1), timeout=10.0)
        yield server


def done(reply):
    future = Future()
    future.set_result(reply)
    return future


def ends_with(code, *arguments):
    with pytest.raises(SystemExit) as info:
        main(arguments)
    assert info.value.code == code


COMMANDS = ("demo", "status", "stop", "evict", "model", "audit", "runs", "replay", "list")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_does_not_import_torch(arguments):
    code = (
        "import sys\n"
        "from fedcore.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'numpy', 'grpc', 'rich', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
        "sys.exit('did not end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version(capsys):
    ends_with(0, "--version")
    assert capsys.readouterr().out == f"fedcore {__version__}\n"


def test_it_is_a_module_too():
    done = subprocess.run([sys.executable, "-m", "fedcore", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fedcore {__version__}\n"


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "the following arguments are required: COMMAND"),
            (["dance"], "invalid choice: 'dance'"),
            (["status"], "the following arguments are required: ADDRESS"),
            (["demo", "--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
            (["demo", "--rounds", "0"], "fedcore demo: error: the demo needs at least one round, not 0"),
            (["demo", "--clients", "1"], "fedcore demo: error: the demo needs at least 2 clients, not 1"),
            (["demo", "--alpha", "nan"], "fedcore demo: error: alpha must be a number above 0, not nan"),
            (["demo", "--seed", "-1"], "fedcore demo: error: the seed must be at least 0, not -1"),
            (
                ["demo", "--kill-server-at-round", "21"],
                "fedcore demo: error: the server can be killed in a round from 1 to 20, not 21",
            ),
            (["runs"], "the following arguments are required: DIR"),
            (["replay", "--verify"], "the following arguments are required: DIR"),
        ],
    )
    def test_in_the_command_line_exit_with_2(self, arguments, says, capsys):
        ends_with(2, *arguments)
        assert says in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["nowhere"], "address 'nowhere' is not host:port"),
            (["192.0.2.1:5"], "(--insecure says that you trust the network)"),
            (["x", "--transport", "memory"], "nothing listens at 'x'"),
            (["x", "--transport", "memory", "--insecure"], "transport 'memory' has no option 'insecure'"),
            (["x", "--transport", "grcp"], "did you mean 'grpc'?"),
        ],
    )
    def test_of_other_kinds_exit_with_1_and_one_line(self, arguments, says, capsys):
        assert main(["status", *arguments]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("fedcore: ")
        assert says in shown.err
        assert shown.err.count("\n") == 1

    def test_an_output_folder_that_cannot_be(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main(["demo", "--out", str(tmp_path / "file")]) == 1
        assert "fedcore: [Errno 17] File exists" in capsys.readouterr().err


class TestStatus:
    def test_as_text(self, server, capsys):
        assert main(["status", server.address]) == 0
        head, traffic, blank, columns, client = capsys.readouterr().out.splitlines()
        assert head.startswith(f"{server.hub.coordinator.run_id}: waiting, 0 of 3 rounds done, ")
        assert traffic == "0 B sent, 0 B received, as safetensors (0 B and 0 B before the codec)"
        assert blank == ""
        assert columns.split() == ["client", "does", "round", "heard", "sent", "received"]
        assert client.split()[:4] == ["client-1", "training", "3/9", "1"]
        assert client.endswith(" s ago   0 B       0 B")

    def test_without_clients_and_with_metrics(self, server, capsys):
        server.hub.coordinator.roster.members.clear()
        server.hub.metrics.update({"loss": 0.25, "accuracy": 0.5, "evaluate/loss": 9.0})
        assert main(["status", server.address]) == 0
        shown = capsys.readouterr().out
        assert "loss 0.250  accuracy 0.500\n" in shown
        assert shown.endswith("\nno clients\n")

    def test_what_was_refused(self, server, capsys):
        with Grpc().connect(server.address) as connection:
            for name, version in (("", 1), ("a/b", 1), ("a", 2), ("a", 2)):
                with suppress(FedcoreError):
                    connection.request(Register(name, accepts=("safetensors",), protocol_version=version), timeout=10.0)
        assert main(["status", server.address]) == 0
        assert "\nrefused: BAD_CLIENT_ID 2, PROTOCOL_VERSION 2\n" in capsys.readouterr().out

    def test_as_json(self, server, capsys):
        server.hub.metrics.update({"loss": float("inf"), "accuracy": 0.5})
        assert main(["status", "--json", server.address]) == 0
        shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert shown["run_id"] == server.hub.coordinator.run_id
        assert shown["metrics"] == {"loss": None, "accuracy": 0.5}
        (client,) = shown["clients"]
        assert (client["client_id"], client["status"], client["step"], client["total"]) == ("client-1", "training", 3, 9)

    def test_watching_ends_with_the_run(self, server, capsys, monkeypatch):
        pauses = []

        def pause(seconds):
            pauses.append(seconds)
            server.hub.stop("enough")

        monkeypatch.setattr("fedcore.cli.time.sleep", pause)
        # the listener goes on until the server is left, as it does while clients say goodbye
        assert main(["status", "--watch", server.address]) == 0
        shown = capsys.readouterr().out
        assert shown.count(" rounds done") == 2
        assert ": finished, " in shown
        assert pauses == [1.0]

    def test_watching_a_server_that_goes_away(self, capsys, monkeypatch):
        status = ServerStatus("run-1", "collecting", 2, 1, 3, accepted=1, target=2, codec="safetensors", elapsed=1.0)
        answers = [status]

        def ask(_):
            if not answers:
                raise ConnectionLost("refused")
            return answers.pop()

        monkeypatch.setattr("fedcore.cli.time.sleep", lambda _: None)
        monkeypatch.setattr("fedcore.cli._ask", ask)
        assert main(["status", "--watch", "--transport", "memory", "x"]) == 1
        shown = capsys.readouterr()
        assert "round 2 has 1 of 2 updates\n" in shown.out
        assert shown.err == "fedcore: the server went away after 1 of 3 rounds: the run is over, or it failed\n"

    def test_an_answer_of_another_kind(self, capsys):
        with Memory().listen("odd", lambda _: done(Reply(Wait()))):
            assert main(["status", "--transport", "memory", "odd"]) == 1
        assert capsys.readouterr().err == "fedcore: the server answered with Wait\n"


class TestList:
    def test_it_shows_every_shelf(self, capsys):
        assert main(["list"]) == 0
        shown = capsys.readouterr().out
        heads = [line for line in shown.splitlines() if not line.startswith(" ")]
        assert heads == ["transports", "codecs", "strategies"]
        for name in ("grpc", "memory", "safetensors", "lz4", "fedavg"):
            assert f"\n  {name} " in shown

    def test_what_is_missing_is_named_with_what_to_install(self, monkeypatch, capsys):
        monkeypatch.delitem(sys.modules, "fedcore.codecs.msgpack", raising=False)
        monkeypatch.setitem(sys.modules, "msgpack", None)
        assert main(["list"]) == 0
        assert "msgpack        codecs 'msgpack' needs msgpack: pip install msgpack" in capsys.readouterr().out


class TestEnds:
    @pytest.mark.parametrize(
        ("error", "code"), [(KeyboardInterrupt(), 130), (RunFailed("no\nrounds"), 1), (BrokenPipeError(), 1)]
    )
    def test_errors_become_exit_codes(self, error, code, monkeypatch, capsys):
        def fail(_):
            raise error

        monkeypatch.setattr("fedcore.demo.run", fail)
        assert main(["demo"]) == code
        assert capsys.readouterr().err == ("fedcore: no rounds\n" if isinstance(error, RunFailed) else "")

    def test_a_reader_that_went_away_is_no_noise(self):
        script = f"{sys.executable} -m fedcore list | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stderr == ""
