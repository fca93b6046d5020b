"""What people see of a run: the lines to the letter, the panel as far as it matters, and that neither breaks the run."""

import io
import logging
import subprocess
import sys

import pytest
from rich.console import Console as Rich

from fedcore import FedAvg, ServerConfig
from fedcore import events as ev
from fedcore.data.digits import DigitsClient, DigitsModel, load_digits
from fedcore.messages import Kind, Outcome, Status, Traffic
from fedcore.observers.board import Board
from fedcore.observers.console import Console
from fedcore.observers.panel import panel
from fedcore.testing import run_federation

STARTED = ev.RunStarted(at=100.0, run_id="run-1", address="127.0.0.1:5", num_rounds=20)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def opened(number, at=101.0):
    return ev.RoundOpened(at=at, round=number, invited=("a", "b"), target=2, quorum=1, deadline=60.0)


def committed(number, at=102.0, **facts):
    facts = {"accepted": ("a", "b"), "seconds": 0.308, "traffic": {"a": Traffic(600_000, 600_000)}} | facts
    return ev.RoundCommitted(at=at, round=number, digest="d", missing={}, **facts)


def evaluated(number, at=102.5, loss=0.4123, accuracy=0.8868):
    return ev.Evaluated(at=at, round=number, metrics={"accuracy": accuracy, "loss": loss})


def failed(number, at=102.0):
    reason = "only 0 of 1 updates came within 60 s"
    return ev.RoundFailed(at=at, round=number, reason=reason, missing={"a": "silent"}, seconds=60.0)


def finished(at=112.3, committed=20, failed=""):
    return ev.RunFinished(at=at, committed=committed, failed=failed)


def accepted(number, client, count, examples=7):
    facts = {"kind": Kind.FIT, "client_id": client, "num_examples": examples, "accepted": count, "target": 2}
    return ev.UpdateAccepted(at=100.0, round=number, **facts)


def resumed(*past, rounds=20):
    """Return the start of a run that goes on."""
    return ev.RunStarted(at=200.0, run_id="run-1", address="127.0.0.1:5", num_rounds=rounds, past=past)


def lines(*events, started=STARTED, close=True, before=()):
    """Return what a plain console writes for some events, but for the first line."""
    stream = io.StringIO()
    with Console(stream) as console:
        for event in (*before, started, *events):
            console(event)
        if not close:
            return stream.getvalue().splitlines()[1:]
    return stream.getvalue().splitlines()[1:]


def drawn(*events, height=30, fancy=True, now=0.0):
    """Return a panel as text."""
    board = Board()
    for event in (STARTED, *events):
        board.note(event)
    stream = io.StringIO()
    Rich(file=stream, width=100, color_system=None).print(panel(board, now, height=height, fancy=fancy))
    return stream.getvalue()


class TestLines:
    def test_the_first_line_says_what_runs_where(self):
        stream = io.StringIO()
        Console(stream)(STARTED)
        assert stream.getvalue() == "run run-1 at 127.0.0.1:5, 20 rounds\n"

    def test_a_round_is_one_line(self):
        assert lines(opened(3), committed(3), evaluated(3)) == [
            "round  3/20  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB"
        ]

    def test_it_waits_for_the_metrics(self):
        assert lines(committed(1), close=False) == []
        assert len(lines(committed(1), evaluated(1), close=False)) == 1

    def test_a_run_that_is_not_evaluated_waits_for_nothing_after_its_second_round(self):
        assert lines(committed(1), committed(2, accepted=("a",)), close=False) == [
            "round  1/20  2 clients  0.31 s  1.2 MB",
            "round  2/20  1 client  0.31 s  1.2 MB",
        ]

    def test_an_evaluation_one_round_behind_is_still_in_its_line(self):
        written = lines(committed(1), evaluated(1), committed(2), committed(3), evaluated(2), evaluated(3), close=False)
        assert [line[:23] for line in written] == [f"round  {number}/20  loss 0.412" for number in (1, 2, 3)]

    def test_an_evaluation_that_comes_after_its_line_gets_one_of_its_own(self):
        assert lines(committed(1), committed(2), evaluated(1), close=False)[2:] == ["round  1/20  loss 0.412  accuracy 0.887"]

    def test_metrics_of_clients_stand_in_for_those_of_the_server(self):
        metrics = {"evaluate/loss": 0.5, "evaluate/f1": 0.75, "fit/loss": 9.0}
        (line,) = lines(committed(1), ev.Evaluated(at=103.0, round=1, metrics=metrics))
        assert line.startswith("round  1/20  loss 0.500  f1 0.750  2")

    def test_a_failed_evaluation_does_not_hold_the_line(self):
        assert lines(committed(1), ev.EvaluationFailed(at=103.0, round=1, reason="ValueError: no"), close=False) == [
            "the evaluation of round 1 failed: ValueError: no",
            "round  1/20  2 clients  0.31 s  1.2 MB",
        ]

    def test_a_failed_round_is_made_good_for(self):
        assert lines(opened(1), failed(1), committed(2), evaluated(2)) == [
            "round  1/21  failed: only 0 of 1 updates came within 60 s",
            "round  2/21  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB",
        ]

    @pytest.mark.parametrize(
        ("event", "line"),
        [
            (ev.ClientLost(at=1.0, client_id="c", silent=10.2), "c is lost: silent for 10.2 s"),
            (
                ev.TaskReturned(at=1.0, round=4, kind=Kind.FIT, client_id="c", reason="KeyError:\n\x1b[2J"),
                "c gave back its task of round 4: KeyError:  [2J",
            ),
            (
                ev.UpdateRefused(at=1.0, round=4, client_id="c", outcome=Outcome.NOT_SELECTED, reason="NOT_SELECTED"),
                "the update of c for round 4 does not count: not selected (NOT_SELECTED)",
            ),
        ],
    )
    def test_what_goes_wrong_has_a_line(self, event, line):
        assert lines(event) == [line]

    def test_the_last_evaluation_comes_after_the_end_and_is_in_its_line_all_the_same(self):
        assert lines(committed(1), finished(committed=1), evaluated(1)) == [
            "round  1/20  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB",
            "finished: 1 round in 12.3 s",
        ]

    def test_an_early_end_says_why(self):
        assert lines(finished(committed=7, failed="3 rounds in a row failed")) == [
            "ended early, 3 rounds in a row failed: 7 rounds in 12.3 s"
        ]

    def test_updates_that_come_after_the_end_are_no_problem(self):
        late = ev.UpdateRefused(at=1.0, round=4, client_id="c", outcome=Outcome.CLOSED, reason="ROUND_CLOSED")
        assert lines(finished(), late) == ["finished: 20 rounds in 12.3 s"]

    def test_outside_a_with_block_it_ends_by_itself(self):
        stream = io.StringIO()
        console = Console(stream)
        for event in (STARTED, committed(1), finished(committed=1)):
            console(event)
        assert stream.getvalue().endswith("finished: 1 round in 12.3 s\n")

    def test_it_can_show_a_second_run(self):
        stream = io.StringIO()
        with Console(stream) as console:
            for event in (STARTED, finished(committed=0), STARTED, committed(1)):
                console(event)
        assert stream.getvalue().splitlines()[-2:] == [
            "run run-1 at 127.0.0.1:5, 20 rounds",
            "round  1/20  2 clients  0.31 s  1.2 MB",
        ]


SIX = [event for number in range(1, 7) for event in (accepted(number, "a", 1), committed(number), evaluated(number))]


class TestARunThatGoesOn:
    def test_rounds_that_were_shown_before_are_not_shown_again(self):
        written = lines(committed(7), evaluated(7), started=resumed(*SIX, accepted(7, "a", 1)), before=[opened(7)], close=False)
        assert written == [
            "goes on with round 7 (1 of 2 updates)",
            "round  7/20  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB",
        ]

    def test_between_two_rounds(self):
        assert lines(started=resumed(*SIX)) == ["goes on with round 7"]

    def test_in_the_first_round(self):
        assert lines(started=resumed(), before=[opened(1)]) == ["goes on with round 1 (0 of 2 updates)"]

    def test_a_round_that_waited_for_its_metrics_had_no_line_yet(self):
        written = lines(evaluated(6), started=resumed(*SIX[:-1]), close=False)
        assert written == ["goes on with round 7", "round  6/20  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB"]

    def test_a_round_that_failed_before_stays_failed(self):
        assert lines(committed(7), evaluated(7), started=resumed(*SIX[:-3], failed(6))) == [
            "goes on with round 7",
            "round  7/21  loss 0.412  accuracy 0.887  2 clients  0.31 s  1.2 MB",
        ]

    def test_a_run_that_was_complete_does_not_go_on(self):
        assert lines(finished(at=200.5, committed=6), started=resumed(*SIX, rounds=6)) == ["finished: 6 rounds in 2.35 s"]

    def test_history_clients_curves_and_time_are_whole(self):
        board = Board()
        for event in (opened(7, at=199.0), resumed(*SIX, accepted(7, "a", 1), accepted(7, "b", 2, 9))):
            board.note(event)
        assert [record.number for record in board.history.rounds] == [1, 2, 3, 4, 5, 6]
        assert {name: (desk.updates, desk.examples) for name, desk in board.clients.items()} == {"a": (7, 7), "b": (1, 9)}
        assert len(board.curves()["loss"]) == 6
        assert (board.current.round, board.accepted, board.awaiting) == (7, 2, set())
        assert board.elapsed(201.0) == pytest.approx(6 * 0.308 + 2.0)
        assert not board.trouble

    def test_clients_are_away_until_they_are_back(self):
        board = Board()
        for event in (resumed(*SIX, accepted(7, "b", 1)), ev.ClientRegistered(at=201.0, client_id="a")):
            board.note(event)
        assert {name: desk.doing for name, desk in board.clients.items()} == {"a": "idle", "b": "away"}

    def test_on_the_panel(self):
        board = Board()
        for event in (opened(7, at=199.0), resumed(*SIX, accepted(7, "a", 1))):
            board.note(event)
        stream = io.StringIO()
        Rich(file=stream, width=100, color_system=None).print(panel(board, 201.0, height=30, fancy=True))
        assert "round  7 of 20  1 of 2 updates" in stream.getvalue()
        assert "resumed in round 7 (1 of 2 updates)" in stream.getvalue()

    @pytest.mark.parametrize("first", [[STARTED, opened(7)], [STARTED, opened(7), finished()], []])
    def test_in_one_console_with_the_process_before(self, first):
        written = lines(opened(7), resumed(*SIX), committed(7), evaluated(7), started=STARTED, before=first)
        assert written[-3:][:2] == ["run run-1 at 127.0.0.1:5, 20 rounds", "goes on with round 7 (0 of 2 updates)"]

    def test_another_run_does_not_take_over_the_round_of_a_run_that_was_left(self):
        another = ev.RunStarted(at=300.0, run_id="run-2", address="x", num_rounds=1)
        assert lines(opened(1), another)[-1] == "run run-2 at x, 1 round"


class TestPauses:
    PAUSED, ON = ev.RunPaused(at=1.0, reason="the disk\nis full"), ev.RunPaused(at=2.0, reason="")

    def test_lines(self):
        assert lines(self.PAUSED, self.ON) == ["the run is paused: the disk is full", "the run goes on"]

    def test_on_the_panel_it_is_gone_when_it_is_over(self):
        assert "the run is paused: the disk is full" in drawn(self.PAUSED)
        assert "paused" not in drawn(self.PAUSED, self.ON)
        assert "paused" not in drawn(self.PAUSED, finished())


class TestPanel:
    def test_the_head(self):
        text = drawn(opened(1), committed(1), opened(2, at=103.0), now=105.0)
        assert "fedcore run-1  127.0.0.1:5" in text
        assert "round  2 of 20  0 of 2 updates" in text
        assert " 5 s " in text

    def test_the_time_left_is_that_of_the_rounds_to_come_at_the_pace_of_the_last(self):
        rounds = [committed(1, seconds=50.0), committed(2, seconds=2.0), committed(3, seconds=2.0)]
        assert "10 s, about 34 s left" in drawn(*rounds, now=110.0)
        assert "left" not in drawn(*rounds[:1], now=110.0)

    def test_clients_and_what_they_do(self):
        text = drawn(
            ev.ClientRegistered(at=1.0, client_id="client-10"),
            ev.ClientRegistered(at=1.0, client_id="client-2"),
            ev.ClientRegistered(at=1.0, client_id="client-1"),
            ev.ClientChanged(at=1.0, client_id="client-2", status=Status.TRAINING, round=1, step=5, total=12),
            ev.UpdateAccepted(at=1.0, round=1, kind=Kind.FIT, client_id="client-1", num_examples=321, accepted=1, target=2),
            ev.ClientLost(at=1.0, client_id="client-10", silent=9.0),
        )
        rows = [line.strip("│ \n").split() for line in text.splitlines() if "client-" in line][:3]
        assert [row[0] for row in rows] == ["client-1", "client-2", "client-10"]
        assert rows[0][1:] == ["waiting", "321", "1"]
        assert rows[1][1:3] == ["training", "5/12"]
        assert rows[2][1] == "lost"
        assert "client-10 is lost: silent for 9.00 s" in text

    def test_an_evaluation_is_no_update(self):
        update = {"at": 1.0, "round": 1, "client_id": "a", "num_examples": 5, "accepted": 1, "target": 2}
        board = Board()
        for kind in (Kind.FIT, Kind.EVALUATE):
            board.note(ev.UpdateAccepted(kind=kind, **update))
        assert board.clients["a"].updates == 1

    def test_more_clients_than_lines_are_counted(self):
        text = drawn(*(ev.ClientRegistered(at=1.0, client_id=f"client-{number}") for number in range(50)), height=24)
        assert "and 37 more" in text
        assert len(text.splitlines()) <= 24

    def test_metrics_have_a_value_and_a_curve(self):
        text = drawn(committed(1), evaluated(1, loss=1.0), committed(2), evaluated(2, loss=0.0))
        assert "loss      0.000   █▁" in text
        assert "traffic   2.4 MB  1.2 MB to clients, 1.2 MB back" in text

    def test_an_ascii_terminal_gets_no_curve(self):
        assert "█" not in drawn(committed(1), evaluated(1), fancy=False)

    def test_the_end(self):
        client = ev.ClientRegistered(at=1.0, client_id="a")
        late = ev.ClientChanged(at=113.0, client_id="a", status=Status.TRAINING, round=1, step=1, total=2)
        text = drawn(client, committed(1), finished(), late, now=500.0)
        assert "finished after 12.3 s" in text
        assert "a        done" in text
        assert "ended early after 12.3 s" in drawn(finished(failed="reasons"))


class TestLive:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")

    def test_the_last_frame_stays_and_the_cursor_comes_back(self):
        stream = Terminal()
        with Console(stream) as console:
            for event in (STARTED, opened(1), committed(1), finished(), evaluated(1)):
                console(event)
        shown = stream.getvalue()
        assert "0.412" in shown
        assert "finished after" in shown
        assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")

    @pytest.mark.parametrize("plain", ["forced", "dumb", "without rich"])
    def test_plain_lines_instead(self, plain, monkeypatch):
        if plain == "dumb":
            monkeypatch.setenv("TERM", "dumb")
        if plain == "without rich":
            monkeypatch.delitem(sys.modules, "fedcore.observers.panel")
            monkeypatch.setitem(sys.modules, "rich.live", None)
        stream = Terminal()
        with Console(stream, force_plain=plain == "forced") as console:
            console(STARTED)
        assert stream.getvalue() == "run run-1 at 127.0.0.1:5, 20 rounds\n"

    def test_a_whole_federation(self):
        train, _ = load_digits()
        stream = Terminal()
        clients = [DigitsClient(train.take(part), epochs=1) for part in train.labels.argsort()[:200].chunk(2)]
        with Console(stream) as console:
            strategy = FedAvg(DigitsModel().state_dict())
            run_federation(clients, strategy=strategy, config=ServerConfig(num_rounds=2), observers=[console])
        assert "round 2 of 2" in stream.getvalue()

    def test_an_error_in_the_display_ends_the_display_alone(self, monkeypatch, caplog):
        def fail(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr("fedcore.observers.panel.panel", fail)
        stream = Terminal()
        with caplog.at_level(logging.ERROR), Console(stream) as console:
            console(STARTED)
            console(committed(1))
        assert "the display" in caplog.text
        assert stream.getvalue().endswith("\x1b[?25h")


class TestStreams:
    def test_a_reader_that_went_away(self, caplog):
        with Console(Broken()) as console:
            for event in (STARTED, committed(1), finished()):
                console(event)
        assert not caplog.records

    def test_a_closed_stream(self, caplog):
        stream = io.StringIO()
        stream.close()
        with Console(stream) as console:
            console(STARTED)
        assert not caplog.records

    def test_a_stream_that_knows_no_umlauts(self):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        with Console(stream) as console:
            console(STARTED)
            console(ev.RoundFailed(at=1.0, round=1, reason="défaut", missing={}))
        assert raw.getvalue().endswith(b"failed: d?faut\n")

    def test_the_standard_output_is_the_default(self, capsys):
        with Console() as console:
            console(STARTED)
        assert capsys.readouterr().out == "run run-1 at 127.0.0.1:5, 20 rounds\n"

    def test_a_process_that_forgets_to_close_leaves_no_terminal_without_cursor(self):
        code = (
            "import io, sys; from fedcore import events as ev; from fedcore.observers.console import Console\n"
            "class Terminal(io.TextIOWrapper):\n"
            "    def isatty(self): return True\n"
            "console = Console(Terminal(sys.stdout.buffer, encoding='utf-8'))\n"
            "console(ev.RunStarted(at=0.0, run_id='r', address='a', num_rounds=1))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={"TERM": "xterm"})
        assert done.stdout.rindex(b"\x1b[?25h") > done.stdout.rindex(b"\x1b[?25l")
