"""What a run leaves: pairs, records, JSON and a picture."""

import json
import math

import pytest

from fedcore.history import History, RoundRecord


@pytest.fixture
def history():
    made = History()
    made.add(RoundRecord(1, "committed", accepted=["a", "b"], metrics={"fit/loss": 2.0}, seconds=1.5, digest="d1"))
    made.add(RoundRecord(2, "failed", "no quorum", missing={"a": "silent"}))
    made.add(RoundRecord(3, "committed", accepted=["a"], digest="d3"))
    return made


def test_it_is_a_list_of_pairs_with_failed_rounds_in_it(history):
    assert list(history) == [(1, {"fit/loss": 2.0}), (2, {}), (3, {})]
    assert [record.outcome for record in history.rounds] == ["committed", "failed", "committed"]


def test_metrics_that_come_later_reach_their_round_in_both_views(history):
    history.note(1, {"loss": 0.5})
    history.note(3, {"loss": 0.25})
    history.note(9, {"loss": 0.0})
    assert history[0] == (1, {"fit/loss": 2.0, "loss": 0.5})
    assert history.rounds[2].metrics == {"loss": 0.25}
    assert len(history) == 3


def test_the_latest_are_those_of_the_last_committed_round(history):
    assert History().latest == {}
    history.note(3, {"loss": 0.25})
    history.add(RoundRecord(4, "failed", "boom", metrics={"fit/loss": 9.0}))
    assert history.latest == {"loss": 0.25}


def test_json_has_every_fact(history):
    read = json.loads(history.to_json(run_id="r", num_rounds=2))
    assert (read["run_id"], read["num_rounds"]) == ("r", 2)
    assert read["rounds"][0] == {
        "number": 1, "outcome": "committed", "reason": "", "accepted": ["a", "b"], "missing": {}, "metrics": {"fit/loss": 2.0},
        "seconds": 1.5, "bytes_sent": 0, "bytes_received": 0, "tensor_bytes_sent": 0, "tensor_bytes_received": 0,
        "traffic": {}, "digest": "d1",
    }  # fmt: skip
    assert read["rounds"][1]["reason"] == "no quorum"
    assert read["rounds"][1]["missing"] == {"a": "silent"}
    assert [RoundRecord(**record) for record in read["rounds"]] == history.rounds


def test_the_loss_of_a_diverged_model_is_still_json(history):
    history.note(3, {"loss": math.inf})

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    read = json.loads(history.to_json(), parse_constant=refuse)
    assert read["rounds"][2]["metrics"] == {"loss": None}
    assert history.latest == {"loss": math.inf}


@pytest.mark.parametrize("metrics", [{}, {"loss": 0.5}, {"loss": 0.5, "accuracy": 0.9, "fit/loss": 1.0}])
def test_a_plot_is_a_png(history, tmp_path, metrics):
    pytest.importorskip("matplotlib")
    history.note(1, metrics)
    path = history.plot(tmp_path / "run.png", "a run")
    assert path == tmp_path / "run.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_plot_of_nothing_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    assert History().plot(str(tmp_path / "empty.png")).stat().st_size > 1000
