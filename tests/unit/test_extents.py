"""The largest magnitudes of tensors, one by one and of many small ones at once."""

import math

import pytest
import torch

from fedcore.errors import NonFinite
from fedcore.extents import check_finite, extent, extents, runs
from fedcore.parameters import DTYPES, Spec


def some(dtype, count=4):
    return torch.tensor([0, 1, 3, 2][:count]).to(DTYPES[dtype])


class TestFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e5m2"])
    def test_c11_u15_one_bad_element_is_found_and_its_tensor_named(self, dtype, bad):
        tensor = torch.zeros(2, 3)
        tensor[1, 2] = bad
        with pytest.raises(NonFinite, match="'second'"):
            check_finite({"first": torch.zeros(2), "second": tensor.to(DTYPES[dtype])})

    def test_c11_a_bad_scalar_tensor_is_found(self):
        with pytest.raises(NonFinite, match="'s'"):
            check_finite({"s": torch.tensor(math.nan)})

    def test_u18_extremes_are_fine(self):
        check_finite({
            "w": torch.tensor([3.4e38, -3.4e38, 1e-45, -0.0]), "d": torch.tensor([1.7e308], dtype=torch.float64),
            "e": torch.empty(0), "n": torch.tensor([1 << 62]), "b": torch.tensor(True), "h": torch.tensor(65504.0).half(),
        })  # fmt: skip


class TestExtent:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype(self, dtype):
        assert extent(some(dtype)) == (1.0 if dtype == "bool" else 3.0)
        assert extent(some(dtype)[1]) == 1.0
        assert extent(torch.empty(0, 2, dtype=DTYPES[dtype])) == 0.0

    @pytest.mark.parametrize("values", [[-5.0, 2.0], [2.0, -5.0], [5.0, -2.0]])
    def test_the_largest_magnitude_of_either_sign(self, values):
        assert extent(torch.tensor(values)) == 5.0

    def test_nan_and_infinity_show_wherever_they_are(self):
        for position in range(3):
            tensor = torch.ones(3)
            tensor[position] = math.nan
            assert math.isnan(extent(tensor))
            tensor[position] = -math.inf
            assert extent(tensor) == math.inf

    def test_the_smallest_integer(self):
        assert extent(torch.tensor([-(1 << 63), 5])) == 2.0**63
        assert extent(torch.tensor([-128], dtype=torch.int8)) == 128.0


class TestExtents:
    def mixed(self):
        draw = torch.Generator().manual_seed(5)
        sizes = [3, 1, 0, 700, 2, 300_000, 40, 5]
        model = {f"w{place}": torch.randn(size, generator=draw) * 10**place for place, size in enumerate(sizes)}
        model |= {"d": torch.randn(6, 7, generator=draw).double(), "h": torch.randn(9, generator=draw).half()}
        return model | {"n": torch.tensor(-7), "t": torch.randn(8, 5, generator=draw).t(), "last": torch.tensor(-2.5)}

    def test_many_at_once_are_what_each_is_alone(self):
        model = self.mixed()
        assert extents(model) == {name: extent(t) for name, t in model.items() if name != "n"}

    def test_side_by_side_or_not_is_the_same(self):
        model = self.mixed()
        spec = Spec.of(model)
        beside = spec.blank()
        for name, tensor in beside.items():
            tensor.copy_(model[name])
        assert extents(beside) == extents(model)

    def test_small_neighbours_of_one_dtype_make_a_run(self):
        sizes = [list(run) for run in runs(self.mixed())]
        assert sizes == [["w0", "w1"], ["w2"], ["w3", "w4"], ["w5"], ["w6", "w7"], ["d"], ["h"], ["t", "last"]]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", range(5))
    def test_c11_the_tensor_that_is_not_finite_is_named_among_its_neighbours(self, place, bad):
        model = {f"w{number}": torch.ones(number + 1) for number in range(5)}
        model[f"w{place}"][-1] = bad
        with pytest.raises(NonFinite, match=f"'w{place}'"):
            check_finite(model)

    def test_u18_magnitudes_whose_sum_is_beyond_all_numbers_are_finite(self):
        model = {name: torch.tensor([1.7e308], dtype=torch.float64) for name in "ab"}
        assert check_finite(model) == {"a": 1.7e308, "b": 1.7e308}
