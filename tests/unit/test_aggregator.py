"""The contract of an aggregator, and the weights of FedAvg."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.aggregator import Gather, Update, as_update
from fedcore.averaging import FedAvgAggregator
from fedcore.errors import AggregationError, ConfigError, InvalidWeight, OutOfRange, SchemaMismatch
from fedcore.exchange import Exchange
from fedcore.parameters import changed, digest


def update(value, examples=1, client="", **more):
    return Update({"w": torch.tensor([float(value)])}, examples, client, **more)


def mean_of(updates, **options):
    aggregator = FedAvgAggregator({"w": torch.ones(1)}, **options)
    for one in updates:
        aggregator.check(one)
        aggregator.add(one)
    return aggregator.result()["w"].item()


def reference(results):
    """The formula as it is written in papers, in float64."""
    total = sum(n for _, n in results)
    return {name: sum(p[name].double() * n for p, n in results) / total for name in results[0][0]}


class TestUpdate:
    def test_unpacks_as_a_pair(self):
        parameters, examples = one = update(1, 7, "a", round=3)
        assert (examples, len(one)) == (7, 2)
        assert one[0] is parameters
        assert one[1] == 7

    def test_a_pair_becomes_an_update(self):
        parameters = {"w": torch.ones(1)}
        assert as_update((parameters, 5)) == Update(parameters, 5)
        assert as_update(one := update(1)) is one


class TestGather:
    def test_c5_the_function_gets_all_updates_by_client_id(self):
        seen = []
        gather = Gather(lambda updates: seen.extend(updates) or {"w": torch.zeros(1)})
        for name in ("b", "c", "a", "A", "10", "9"):
            gather.add(update(1, client=name))
        assert gather.result()["w"].tolist() == [0.0]
        assert [one.client_id for one in seen] == ["10", "9", "A", "a", "b", "c"]

    def test_nothing_made_is_an_error(self):
        gather = Gather(lambda updates: None)
        gather.add(update(1))
        with pytest.raises(AggregationError, match="1 updates"):
            gather.result()

    def test_it_has_no_partial_state(self):
        gather = Gather(lambda updates: None)
        assert gather.retains
        assert not gather.mergeable
        with pytest.raises(ConfigError, match="Gather"):
            gather.partial()
        with pytest.raises(ConfigError, match="Gather"):
            gather.merge({})


class TestMean:
    def test_pairs_give_the_reference_formula(self):
        generator = torch.Generator().manual_seed(3)
        results = [
            ({"w": torch.randn(5, 4, generator=generator), "s": torch.randn((), generator=generator)}, n) for n in (3, 10, 50)
        ]
        made, wanted = FedAvgAggregator().aggregate(results), reference(results)
        for name in ("w", "s"):
            assert made[name].shape == wanted[name].shape
            assert made[name].dtype == torch.float32
            assert torch.allclose(made[name].double(), wanted[name], rtol=2.0**-23, atol=2.0**-40)

    def test_heavier_updates_weigh_more(self):
        assert mean_of([update(0, 1), update(4, 3)]) == 3.0

    def test_c1_c2_integers_take_the_largest_and_booleans_are_or_ed(self):
        rows = [
            {"n": torch.tensor(3), "v": torch.tensor([5, -7], dtype=torch.int16), "b": torch.tensor([True, False])},
            {"n": torch.tensor(9), "v": torch.tensor([2, -9], dtype=torch.int16), "b": torch.tensor([False, False])},
        ]
        made = FedAvgAggregator(rows[0]).aggregate((row, n) for row, n in zip(rows, (100, 1), strict=True))
        assert made["n"].item() == 9
        assert made["n"].shape == ()
        assert made["v"].tolist() == [5, -7]
        assert made["b"].tolist() == [True, False]
        assert [t.dtype for t in made.values()] == [torch.int64, torch.int16, torch.bool]

    def test_the_models_own_counter_does_not_count(self):
        aggregator = FedAvgAggregator({"n": torch.tensor(100)})
        aggregator.add(Update({"n": torch.tensor(-3)}, 1))
        assert aggregator.result()["n"].item() == -3

    def test_c13_a_tied_tensor_is_summed_once_and_tied_again(self):
        def tied(value):
            one = torch.full((2,), float(value))
            return {"a": one, "b": one}

        aggregator = FedAvgAggregator(tied(0))
        aggregator.add(Update(tied(1), 1))
        aggregator.add(Update({"a": torch.full((2,), 3.0), "b": torch.full((2,), 3.0)}, 1))
        made = aggregator.result()
        assert made["b"] is made["a"]
        assert made["a"].tolist() == [2.0, 2.0]

    def test_c14_empty_tensors_and_scalars(self):
        made = FedAvgAggregator().aggregate([({"e": torch.empty(0, 3), "s": torch.tensor(v)}, 1) for v in (1.0, 2.0)])
        assert made["e"].shape == (0, 3)
        assert made["s"].shape == ()
        assert made["s"].item() == 1.5

    def test_c18_the_result_shares_nothing_with_the_updates(self):
        one = Update({"w": torch.ones(1), "n": torch.tensor([1])}, 1)
        aggregator = FedAvgAggregator(one.parameters)
        aggregator.add(one)
        made = aggregator.result()
        one.parameters["w"].fill_(9), one.parameters["n"].fill_(9)
        assert (made["w"].item(), made["n"].item()) == (1.0, 1)

    @pytest.mark.parametrize("share", [None, 0.5])
    def test_c9_no_updates_have_no_mean(self, share):
        with pytest.raises(AggregationError, match="no updates"):
            FedAvgAggregator({"w": torch.ones(1)}, max_share=share).result()

    def test_streaming_needs_the_model(self):
        with pytest.raises(ConfigError, match="base"):
            FedAvgAggregator().add(update(1))

    def test_streaming_keeps_no_update(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1)})
        assert not aggregator.retains
        assert aggregator.mergeable


class TestRefusal:
    BASE = {"a": torch.ones(2), "b": torch.ones(2), "n": torch.tensor(0)}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("spoil", "kind", "text"),
        [
            (lambda p: p.pop("b"), SchemaMismatch, "'b' is missing"),
            (lambda p: p.update(x=torch.ones(1)), SchemaMismatch, "'x'"),
            (lambda p: p.update(b=torch.ones(1)), SchemaMismatch, "'b' has shape"),
            (lambda p: p.update(b=torch.ones(2).half()), SchemaMismatch, "'b' has dtype"),
            (lambda p: p.update(b=torch.full((2,), 2.0**60)), OutOfRange, "'b' holds"),
            (lambda p: p.update(b=torch.tensor([1.0, float("nan")])), OutOfRange, "'b' holds"),
        ],
    )
    def test_c6_c7_c8_a_bad_update_changes_nothing(self, spoil, kind, text):
        aggregator = FedAvgAggregator(self.BASE)
        aggregator.add(Update({name: tensor + 1 for name, tensor in self.BASE.items()}, 3))
        before = {name: part.clone() for name, part in aggregator.partial().items()}
        bad = {name: tensor + 5 for name, tensor in self.BASE.items()}
        spoil(bad)
        for step in (aggregator.check, aggregator.add):
            with pytest.raises(kind, match=text):
                step(Update(bad, 2))
        assert digest(aggregator.partial()) == digest(before)
        assert aggregator.result()["a"].tolist() == [2.0, 2.0]

    @pytest.mark.parametrize("examples", [0, -1, float("nan"), float("inf")])
    def test_c9_c10_a_weight_must_be_positive(self, examples):
        aggregator = FedAvgAggregator({"w": torch.ones(1)})
        for step in (aggregator.check, aggregator.add):
            with pytest.raises(InvalidWeight, match="'liar'"):
                step(update(1, examples, "liar"))

    @pytest.mark.parametrize("options", [{"weighting": "size"}, {"weighting": None}, {"weighting": 1}])
    def test_unknown_weightings(self, options):
        with pytest.raises(ConfigError, match="weighting"):
            FedAvgAggregator(**options)

    @pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
    def test_impossible_shares(self, share):
        with pytest.raises(ConfigError, match="max_share"):
            FedAvgAggregator(max_share=share)

    def test_aggregate_checks_every_update_against_the_first(self):
        with pytest.raises(SchemaMismatch, match="'w' is missing"):
            FedAvgAggregator().aggregate([({"w": torch.ones(1)}, 1), ({"v": torch.ones(1)}, 1)])


class TestWeighting:
    def test_uniform(self):
        assert mean_of([update(0, 1), update(4, 1000)], weighting="uniform") == 2.0

    def test_a_function_of_the_update(self):
        updates = [update(0, 5, metrics={"share": 0.25}), update(4, 7, metrics={"share": 0.75})]
        assert mean_of(updates, weighting=lambda one: one.metrics["share"]) == 3.0

    def test_a_tiny_weight_is_not_rounded_to_nothing(self):
        assert mean_of([update(4, 1)], weighting=lambda one: 1e-12) == 4.0

    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
    def test_a_function_must_return_a_positive_number(self, value):
        with pytest.raises(InvalidWeight, match="'c'"):
            FedAvgAggregator({"w": torch.ones(1)}, weighting=lambda one: value).check(update(1, 1, "c"))


class TestPartial:
    def test_partial_sums_of_another_shape_are_refused(self):
        aggregator = FedAvgAggregator({"w": torch.ones(2)})
        with pytest.raises(SchemaMismatch, match="'w'"):
            aggregator.merge(FedAvgAggregator({"w": torch.ones(3)}).partial())
        with pytest.raises(SchemaMismatch, match="'w'"):
            aggregator.merge({"weight": torch.tensor(1)})

    def test_partial_sums_of_another_model_are_refused(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1)})
        with pytest.raises(OutOfRange, match="partial sum"):
            aggregator.merge(FedAvgAggregator({"w": torch.full((1,), 100.0)}).partial())

    def test_an_empty_partial_changes_nothing(self):
        base = {"w": torch.ones(1), "n": torch.tensor(100)}
        aggregator = FedAvgAggregator(base)
        aggregator.add(Update({"w": torch.ones(1), "n": torch.tensor(-5)}, 2))
        aggregator.merge(FedAvgAggregator(base).partial())
        assert aggregator.result()["n"].item() == -5

    def test_partial_travels_as_tensors(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1), "n": torch.tensor(1)})
        aggregator.add(Update({"w": torch.ones(1), "n": torch.tensor(1)}, 2))
        partial = aggregator.partial()
        assert sorted(partial) == ["max/n", "sum/w/low", "sum/w/shift", "weight"]
        assert partial["weight"].item() == 2

    def test_a_cap_needs_every_update_in_one_place(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1)}, max_share=0.5)
        assert not aggregator.mergeable
        with pytest.raises(ConfigError):
            aggregator.partial()
        with pytest.raises(ConfigError):
            aggregator.merge({})


def capped(weights, share):
    """Cut weights so that none exceeds ``share`` of what is left: bisection on the cap, independent of the real thing."""
    weights = np.asarray(weights, np.float64)
    if len(weights) * share <= 1:
        return np.ones_like(weights)
    low, high = 0.0, weights.max()
    for _ in range(200):
        cap = (low + high) / 2
        low, high = (cap, high) if cap <= share * np.minimum(weights, cap).sum() else (low, cap)
    return np.minimum(weights, low if low < weights.max() * (1 - 1e-12) else weights.max())


def shares(weights, share):
    """Return each client's part of the aggregate: the mean of unit vectors."""
    count = len(weights)
    aggregator = FedAvgAggregator({"w": torch.ones(count, dtype=torch.float64)}, max_share=share)
    for index, weight in enumerate(weights):
        aggregator.add(Update({"w": torch.eye(count, dtype=torch.float64)[index]}, weight, f"c{index:02}", digest=str(index)))
    return aggregator.result()["w"].numpy()


class TestCap:
    @settings(max_examples=30, deadline=None, database=None)
    @given(st.lists(st.integers(10**5, 10**7), min_size=3, max_size=12, unique=True), st.sampled_from([0.1, 0.2, 0.35, 0.5]))
    def test_y6_weights_that_must_be_cut_are_cut_exactly(self, weights, share):
        if max(weights) <= share * sum(weights):
            weights = [*weights, 20 * sum(weights)]
        wanted = capped(weights, share)
        np.testing.assert_allclose(shares(weights, share), wanted / wanted.sum(), rtol=1e-4)

    @pytest.mark.parametrize(
        ("weights", "share"), [([3000, 2500, 2000, 2500], 0.5), ([40, 30, 30], 0.4), ([9, 8, 7, 6, 5, 4], 0.25)]
    )
    def test_weights_that_need_no_cut_are_left_alone(self, weights, share):
        np.testing.assert_allclose(shares(weights, share), np.array(weights) / sum(weights), rtol=1e-9)

    @pytest.mark.parametrize(("weights", "share"), [([5000, 4000, 3000], 0.9), ([7, 5], 1.0), ([10] * 10, 0.1), ([8, 8], 0.5)])
    def test_a_cap_that_nobody_reaches_changes_nothing(self, weights, share):
        np.testing.assert_allclose(shares(weights, share), np.array(weights) / sum(weights), rtol=1e-9)

    def test_small_weights_are_cut_exactly_too(self):
        wanted = capped([10, 1, 1], 0.4)
        np.testing.assert_allclose(shares([10, 1, 1], 0.4), wanted / wanted.sum(), rtol=1e-5)

    def test_c10_y6_a_liar_has_no_more_than_its_share(self):
        part = shares([10**9, 100, 120, 80, 110], 0.25)
        assert part[0] <= 0.25 + 1e-9
        assert part[0] >= 0.24
        np.testing.assert_allclose(part[1:] / part[1:].sum(), np.array([100, 120, 80, 110]) / 410, rtol=0.02)

    @pytest.mark.parametrize(("weights", "share"), [([10**9, 1], 0.5), ([500, 20, 3], 0.3), ([5], 0.2), ([10**6, 1, 10], 0.1)])
    def test_too_few_updates_for_the_cap_weigh_the_same(self, weights, share):
        np.testing.assert_allclose(shares(weights, share), np.full(len(weights), 1 / len(weights)), rtol=1e-9)

    def test_c5_no_order_changes_a_bit(self):
        updates = [update(value, weight, name) for value, weight, name in
                   [(0.1, 900, "a"), (0.7, 900, "b"), (-3.3, 40, "c"), (5.1, 30, "d"), (0.3, 900, "e")]]  # fmt: skip
        made = {mean_of(order, max_share=0.4) for order in (updates, updates[::-1], updates[2:] + updates[:2])}
        assert len(made) == 1

    def test_only_the_heaviest_are_kept(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1)}, max_share=0.5)
        assert aggregator.retains
        for index in range(5):
            aggregator.add(update(1, 1000 + index, f"c{index}"))
        assert aggregator.weight == (1000 + 1001 + 1002) << 20  # what is folded already, in fractions

    def test_pairs_of_equal_weight(self):
        pairs = [({"w": torch.tensor([value, value])}, 10) for value in (1.0, 2.0, 3.0)]
        assert FedAvgAggregator(max_share=0.5).aggregate(pairs)["w"].tolist() == [2.0, 2.0]

    def test_a_bad_update_is_refused_when_it_comes(self):
        aggregator = FedAvgAggregator({"w": torch.ones(1)}, max_share=0.5)
        with pytest.raises(SchemaMismatch):
            aggregator.add(Update({}, 5))


class TestDifferences:
    """At an asynchronous pace updates are differences, and late ones are smaller, not lighter."""

    def aggregator(self):
        made = FedAvgAggregator({"w": torch.ones(1), "n": torch.tensor(7)})
        made.difference = True
        return made

    def updates(self):
        one = Update({"w": torch.tensor([4.0]), "n": torch.tensor(9)}, 10, "a")
        return [one, Update({"w": torch.tensor([1.0]), "n": torch.tensor(8)}, 30, "b", discount=0.5)]

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_discount_is_outside_the_mean(self, order):
        found = self.aggregator().aggregate(self.updates()[::order])
        assert found["w"].tolist() == [(10 * 4.0 + 30 * 0.5) / 40]
        assert found["n"] == 9

    def test_statistics_are_no_differences(self):
        base = {"w": torch.ones(2), "bn.running_var": torch.ones(2), "v": torch.ones(2)}
        made = FedAvgAggregator(base)
        made.difference = True
        for name, variance, discount in (("a", [0.25, 4.0], 1.0), ("b", [0.0, 0.0], 0.25)):
            made.add(Update({**base, "bn.running_var": torch.tensor(variance)}, 10, name, discount=discount))
        found = made.result()
        assert found["bn.running_var"].tolist() == [0.125, 2.0]
        assert found["w"].tolist() == found["v"].tolist() == [0.625, 0.625]
        assert changed(base, found)["bn.running_var"].tolist() == [0.125, 2.0]

    def test_in_parts_they_add_up_to_the_same(self):
        whole, one, other = (self.aggregator() for _ in range(3))
        for update, part in zip(self.updates(), (one, other), strict=True):
            whole.add(update)
            part.add(update)
        one.merge(other.partial())
        assert digest(one.result()) == digest(whole.result())

    def test_who_gathers_them_is_given_what_is_left(self):
        gather = Gather(lambda updates: {"w": sum(each.parameters["w"] for each in updates)})
        for each in self.updates():
            gather.add(each)
        assert gather.result()["w"].tolist() == [4.5]

    def test_what_stays_at_the_server_does_not_change(self):
        made = FedAvgAggregator({"w": torch.ones(1), "n": torch.tensor(7)}, exchange=Exchange(buffers={"*": "server"}))
        made.difference = True
        found = made.aggregate(self.updates())
        assert (found["w"].item(), found["n"].item()) == (0.0, 7)
