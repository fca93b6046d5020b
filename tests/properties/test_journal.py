"""The journal in memory answers as the one on the disk does, whatever it is asked and in whatever order."""

from dataclasses import fields, replace
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import digest, events
from fedcore.aggregator import Update
from fedcore.errors import FedcoreError, OutOfStorage
from fedcore.journal import Diary
from fedcore.ledger import Entry
from fedcore.messages import Traffic
from fedcore.parameters import Spec
from fedcore.registry import codec
from fedcore.testing import Crashed, MemoryJournal
from fedcore.testing.journal import STEPS

FAST = settings(max_examples=60, deadline=None, database=None, derandomize=True)
MODELS = [{"w": torch.tensor([float(n), -0.5]), "n": torch.tensor(n)} for n in range(4)]
NAMES, SPEC = [digest(model) for model in MODELS], Spec.of(MODELS[0])

numbers, models, clients = st.sampled_from([1, 1, 2, 2, 3]), st.integers(0, 3), st.sampled_from("ab")
moments = st.sampled_from([0.0, 1.5, 3.0])
metrics = st.sampled_from([{}, {"loss": 0.5}, {"fit/accuracy": 1.0}])
memories = st.sampled_from([{}, {"step": 3, "deep": {"list": [1, None]}}, {"momentum": torch.tensor([1.0, 2.0])}])


@st.composite
def entries(draw):
    """An update of some client in some round, which may be the same as another, or contradict it."""
    number, client, model = draw(numbers), draw(clients), draw(models)
    counted = draw(st.sampled_from([number, number, number, number + 1]))
    weight = draw(st.sampled_from([5, 5, 6]))
    return Entry(f"fit-{number}-{client}", number, client, "x", NAMES[model], weight, {"m": 0.5}, counted, weight, "p")


def update(entry):
    return Update(MODELS[NAMES.index(entry.digest)], entry.num_examples, entry.client_id, entry.counted, entry.metrics)


def committed(number, model, entries):
    traffic = {"a": Traffic(1, 2, 3, 4)}
    accepted = tuple(entry.client_id for entry in entries)
    return events.RoundCommitted(
        at=9.0, round=number, digest=NAMES[model], accepted=accepted, missing={"z": "silent"}, metrics={"fit/m": 0.5},
        seconds=2.5, traffic=traffic,
    )  # fmt: skip


def failed(number):
    return events.RoundFailed(at=9.0, round=number, reason="no", missing={"a": "lost"}, seconds=1.25)


CALLS = {
    "join": st.tuples(clients, st.sampled_from([["p"], ["p", "q"]])),
    "open": st.tuples(numbers, st.sampled_from(NAMES), st.sampled_from([[], ["a", "b"]])),
    "elapse": st.tuples(numbers, moments),
    "accept": st.builds(lambda entry, elapsed: (entry, update(entry), SPEC, elapsed), entries(), moments),
    "withdraw": st.builds(lambda entry: (entry.task_id,), entries()),
    "close": st.builds(lambda n, some: (n, [each.task_id for each in some]), numbers, st.lists(entries(), max_size=2)),
    "commit": st.builds(
        lambda number, model, memory, some: (committed(number, model, some), MODELS[model], SPEC, memory, some),
        numbers, models, memories, st.lists(entries(), max_size=2),
    ),
    "fail": st.builds(lambda number: (failed(number),), numbers),
    "measure": st.tuples(numbers, metrics),
    "cherish": st.tuples(numbers),
    "tidy": st.just(()),
    "read": st.tuples(entries()),
    "reopen": st.just(()),
}  # fmt: skip
calls = st.sampled_from(sorted(CALLS)).flatmap(lambda name: st.tuples(st.just(name), CALLS[name]))


def plain(value):
    """Return something that can be compared: tensors by their digest."""
    if isinstance(value, dict) and any(isinstance(each, torch.Tensor) for each in value.values()):
        return {name: each.tolist() if isinstance(each, torch.Tensor) else plain(each) for name, each in value.items()}
    return value


def told(journal, name, arguments):
    """Return what a journal answers."""
    try:
        return plain(getattr(journal, name)(*arguments))
    except FedcoreError as error:
        return type(error).__name__, error.reason


def recalled(journal):
    """Return all that a journal knows of the past, and every model in it."""
    past = journal.restore(7.0)
    if past is None:
        return None
    made = [event.round for event in past.events if isinstance(event, events.RoundCommitted)]
    facts = {each.name: plain(getattr(past, each.name)) for each in fields(past)}
    facts["facts"] = {name: value for name, value in past.facts.items() if name != "begun"}
    if past.page:
        facts["page"] = replace(past.page, facts={})
    return facts, [told(journal, "model", [number]) for number in made]


def a_run(draw):
    """Draw calls that go together, with others between them."""
    noise = st.lists(calls, max_size=2)
    found, base = [], 0
    for number in (1, 2, 3):
        found += draw(noise)
        found.append(("open", (number, NAMES[base], ["a", "b"])))
        some = draw(st.lists(entries(), max_size=2, unique_by=lambda entry: entry.client_id))
        some = [replace(each, round=number, counted=number, task_id=f"fit-{number}-{each.client_id}") for each in some]
        for entry in some:
            found.append(("accept", (entry, update(entry), SPEC, draw(moments))))
            found += draw(noise)
        if draw(st.booleans()):
            found.append(("close", (number, [each.task_id for each in some])))
            found += draw(noise)
        if some and draw(st.sampled_from([True, True, False])):
            base = draw(models)
            memory = draw(memories)
            found.append(("commit", (committed(number, base, some), MODELS[base], SPEC, memory, some)))
        else:
            found.append(("fail", (failed(number),)))
    return found


@given(st.booleans(), st.integers(0, 2), st.data())
@FAST
def test_both_journals_answer_the_same(each_update, keep, data):
    with TemporaryDirectory() as folder:
        where = f"{folder}/state"
        journals = [
            Diary(where, codec("safetensors"), each_update=each_update, keep_updates=keep),
            MemoryJournal(each_update=each_update, keep_updates=keep),
        ]
        try:
            assert [recalled(journal) for journal in journals] == [None, None]
            for journal in journals:
                journal.begin("run-1", {"seed": 3}, MODELS[0], SPEC, NAMES[0])
            for name, arguments in a_run(data.draw):
                last = max(journals[1].disk.pages.items())[1]
                if name == "open" and (last.state in ("open", "closed") or arguments[0] != last.number + 1):
                    continue  # nobody opens a round while another goes on, or leaves a number out
                if name == "reopen":
                    journals[0].end()
                    journals = [
                        Diary(where, codec("safetensors"), each_update=each_update, keep_updates=keep),
                        MemoryJournal(journals[1].disk, each_update=each_update, keep_updates=keep),
                    ]
                else:
                    one, other = (told(journal, name, arguments) for journal in journals)
                    assert one == other, (name, arguments)
                one, other = map(recalled, journals)
                assert one == other, (name, arguments)
        finally:
            journals[0].end()


def test_a_model_may_be_one_of_its_updates(tmp_path):
    journal = Diary(str(tmp_path / "state"), codec("safetensors"), each_update=False, keep_updates=0)
    journal.begin("run-1", {}, MODELS[0], SPEC, NAMES[0])
    journal.open(1, NAMES[0], ["a"])
    journal.commit(committed(1, 1, [entry_of(1)]), MODELS[1], SPEC, {}, [entry_of(1)])
    try:
        assert journal.restore(0.0).digest == NAMES[1]
    finally:
        journal.end()


def begun(**settings):
    journal = MemoryJournal(**settings)
    journal.begin("run-1", {}, MODELS[0], SPEC, NAMES[0])
    return journal


def at(wanted, error):
    """Return a function that raises at one point."""

    def passed(point):
        if point == wanted:
            raise error

    return passed


def entry_of(number):
    return Entry(f"fit-{number}-a", number, "a", "x", NAMES[1], 5, {}, number, 5, "p")


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_crash_happens_before_or_behind_a_step_and_never_within(where):
    journal = begun(passed=at(f"accept.{where}", Crashed()))
    journal.open(1, NAMES[0], ["a"])
    with pytest.raises(Crashed):
        journal.accept(entry_of(1), update(entry_of(1)), SPEC, 2.0)
    past = MemoryJournal(journal.disk).restore(0.0)
    assert [entry.task_id for entry in past.entries] == (["fit-1-a"] if where == "after" else [])
    assert past.page.elapsed == (2.0 if where == "after" else 0.0)


def test_a_journal_whose_server_is_gone_writes_nothing_any_more():
    first = begun()
    second = MemoryJournal(first.disk)
    with pytest.raises(Crashed):
        first.open(1, NAMES[0], [])
    second.open(1, NAMES[0], [])
    assert second.restore(0.0).number == 1


def test_a_full_disk_takes_nothing():
    journal = begun(passed=at("open.before", OutOfStorage("full")))
    with pytest.raises(OutOfStorage):
        journal.open(1, NAMES[0], [])
    assert journal.restore(0.0).page is None


def test_every_step_has_two_points():
    seen = []
    journal = begun(passed=seen.append)
    journal.join("a", ["p"])
    journal.open(1, NAMES[0], ["a"])
    journal.elapse(1, 1.0)
    journal.accept(entry_of(1), update(entry_of(1)), SPEC, 2.0)
    journal.withdraw("nothing")
    journal.close(1, ["fit-1-a"])
    journal.commit(committed(1, 2, [entry_of(1)]), MODELS[2], SPEC, {}, [])
    journal.measure(1, {"loss": 1.0})
    journal.open(2, NAMES[2], [])
    journal.fail(failed(2))
    assert {point for point in seen if not point.startswith("open")} | {"open.before", "open.after"} == {
        f"{step}.{where}" for step in STEPS for where in ("before", "after")
    }


def test_what_is_kept_is_not_what_was_handed_in():
    model = {"w": torch.zeros(2), "n": torch.tensor(0)}
    journal = MemoryJournal()
    journal.begin("run-1", {}, model, SPEC, digest(model))
    model["w"] += 1
    restored = journal.restore(0.0)
    restored.parameters["w"] += 1
    assert journal.restore(0.0).parameters["w"].tolist() == [0.0, 0.0]
