"""What may be said: identities, configurations, metrics and weights are checked before they are believed."""

import math

import pytest

from fedcore.errors import BadMetric, ConfigError, InvalidWeight
from fedcore.messages import (
    BeatReply,
    Directive,
    Manifest,
    Outcome,
    Submitted,
)
from fedcore.values import check_client_id, check_config, check_metrics, check_num_examples


@pytest.mark.parametrize("name", ["a", "Z9", "0", "client-1", "hospital_7.site", "a" * 64, "1..", "a-"])
def test_names_that_are_client_ids(name):
    assert check_client_id(name) is name


BAD_IDS = {
    "R1 empty": "",
    "R2 65 characters": "a" * 65,
    "R2 one mebibyte": "a" * (1 << 20),
    "R3 parent": "../../outside",
    "R3 absolute": "/abs/outside",
    "R3 slash": "a/b",
    "R3 two dots": "..",
    "R3 dot": ".",
    "R3 backslash": "a\\b",
    "R3 zero byte": "a\0b",
    "R5 homoglyph": "cli\u0435nt",
    "R5 composed": "caf\u00e9",
    "R5 decomposed": "cafe\u0301",
    "R5 full width": "\uff41",
    "R5 digit of another script": "\u0661",
    "W14 line break": "a\n",
    "W14 forged log line": "a\nERROR all is lost",
    "W14 escape sequence": "\x1b[2Ja",
    "leading dash": "-a",
    "space": "a b",
    "no text": 7,
    "None": None,
    "bytes": b"a",
}


@pytest.mark.parametrize("fault", BAD_IDS)
def test_w14_names_that_are_none(fault):
    with pytest.raises(ConfigError) as caught:
        check_client_id(BAD_IDS[fault])
    assert caught.value.reason == "BAD_CLIENT_ID"
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


CONFIG = {
    "flag": True, "off": False, "count": 1, "least": -(1 << 63), "most": (1 << 63) - 1, "rate": 0.5, "inf": math.inf,
    "text": "größe", "empty": "", "raw": b"\x00\xff", "list": [1, 2.5, "x", True, b""], "nothing": [],
}  # fmt: skip


def test_c16_a_config_keeps_its_values_and_their_types():
    checked = check_config(CONFIG)
    assert checked == CONFIG
    assert [type(value) for value in checked.values()] == [type(value) for value in CONFIG.values()]
    assert [type(item) for item in checked["list"]] == [int, float, str, bool, bytes]


def test_a_checked_config_is_a_copy():
    given = {"a": [1, 2]}
    checked = check_config(given)
    given["a"].append(3)
    given["b"] = 1
    assert checked == {"a": [1, 2]}


def test_a_tuple_is_taken_as_a_list():
    assert check_config({"betas": (0.9, 0.99)}) == {"betas": [0.9, 0.99]}


@pytest.mark.parametrize(
    "value",
    [None, {}, {"a": 1}, [[1]], [None], {1, 2}, 1j, object(), 1 << 63, -(1 << 63) - 1, [1 << 64], "a" * 65537,
     b"a" * 65537, [0] * 65537, "\ud800", ["ok", "\udfff"]],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_value_of_another_type_or_size_is_refused_by_its_key(value):
    with pytest.raises(BadMetric, match="'culprit'"):
        check_config({"fine": 1, "culprit": value})


@pytest.mark.parametrize("key", [1, None, b"a", "a" * 129, ("a",)])
def test_a_key_is_a_short_string(key):
    with pytest.raises(BadMetric, match="key"):
        check_config({key: 1})


def test_u20_too_many_keys():
    assert len(check_config({str(n): n for n in range(256)})) == 256
    with pytest.raises(BadMetric, match="257 keys") as caught:
        check_config({str(n): n for n in range(257)})
    assert caught.value.reason == "TOO_MANY_FIELDS"


def test_u20_a_metric_that_is_not_finite_is_dropped_and_the_others_stay():
    metrics = {"loss": 0.5, "nan": math.nan, "inf": math.inf, "minus": -math.inf, "steps": 3, "done": True}
    checked = check_metrics(metrics)
    assert checked == {"loss": 0.5, "steps": 3.0, "done": 1.0}
    assert {type(value) for value in checked.values()} == {float}


@pytest.mark.parametrize("value", ["0.5", b"", [0.5], None])
def test_a_metric_is_a_number(value):
    with pytest.raises(BadMetric, match="'acc'"):
        check_metrics({"acc": value})


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_a_number_of_examples(count):
    assert check_num_examples(count, 1000) == count


@pytest.mark.parametrize(
    "count", [0, -1, -(1 << 63), 1001, (1 << 63) - 1, 1.0, 1.5, True, "7", None, math.nan, math.inf], ids=repr
)
def test_c9_c10_a_weight_that_is_zero_negative_or_implausible_is_refused(count):
    with pytest.raises(InvalidWeight, match="num_examples"):
        check_num_examples(count, 1000)


def test_sizes_beyond_32_bits_add_up():
    assert Manifest("c", 4096, (1 << 40, 1 << 40, 5)).total_bytes == (1 << 41) + 5


def test_l16_only_accepted_and_duplicate_count():
    assert {o for o in Outcome if Submitted(o).counted} == {Outcome.ACCEPTED, Outcome.DUPLICATE}


def test_l15_only_stop_says_stop():
    assert [d for d in Directive if BeatReply(True, d).should_stop] == [Directive.STOP]
