"""Directions are the same everywhere: published words, and each element by itself."""

from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore import digest
from fedcore.directions import KINDS, draw, philox, seeds, shift

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ALL] * 4, [ALL, ALL], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)  # fmt: skip
def test_the_vectors_of_random123(counter, key, wanted):
    found = philox([torch.tensor([word]) for word in counter], key[0] | key[1] << 32)
    assert [word.item() for word in found] == wanted


@pytest.mark.parametrize("kind", KINDS)
@given(start=st.integers(0, 2**40), before=st.integers(0, 200), count=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_any_stretch_by_itself(kind, start, before, count):
    longer = draw(kind, 7, start, before + count)
    assert torch.equal(draw(kind, 7, start + before, count), longer[before:])


def test_the_bits_that_were_ever_drawn():
    found = digest({kind: draw(kind, 0xFEDC0DE << 32 | 5, 1_000_003, 70_001) for kind in KINDS})
    assert found == "6edfe6cb694763866ccbcef99e8f3cc0b2e008a7a45029f84e47fbfb1555b2c3"


def test_rademacher_by_the_words():
    words = philox([torch.arange(2), *[torch.zeros(2, dtype=torch.int64)] * 3], 9)
    bits = [words[w][block].item() >> bit & 1 for block in range(2) for w in range(4) for bit in range(32)]
    assert draw("rademacher", 9, 0, 256).tolist() == [2.0 * bit - 1 for bit in bits]


def test_gaussian_by_the_words():
    words = torch.stack(philox([torch.arange(25_000), *[torch.zeros(25_000, dtype=torch.int64)] * 3], 3), dim=1).view(-1)
    wanted = [NormalDist().inv_cdf(((word >> 8) + 0.5) / 2**24) for word in words.tolist()]
    assert (draw("gaussian", 3, 0, 100_000).double() - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-6


def test_gaussian_far_out():
    from fedcore.directions import _normal

    found = _normal(torch.tensor([0, ALL, 1 << 31, 256, ALL - 256]))
    wanted = [NormalDist().inv_cdf(((word >> 8) + 0.5) / 2**24) for word in (0, ALL, 1 << 31, 256, ALL - 256)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_they_look_random(kind):
    many = torch.stack([draw(kind, seed, 0, 100_000) for seed in seeds(1, 2, 8)]).double()
    assert many.mean(dim=1).abs().max() < 5 / 100_000**0.5
    assert (many.square().mean(dim=1) - 1).abs().max() < 5 * (2 / 100_000) ** 0.5
    products = many @ many.T / 100_000 - torch.diag(many.square().mean(dim=1))
    assert products.abs().max() < 5 / 100_000**0.5


def test_seeds_differ_by_step_and_place():
    found = [seed for step in range(1, 40) for seed in seeds(11, step, 5)]
    assert len(set(found)) == len(found)
    assert seeds(11, 3, 5)[:2] == seeds(11, 3, 2)
    assert max(found) > 1 << 62


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_shift_runs_through_tensors_as_one(kind, threads):
    sizes, count = [3, 1, 0, 140_000, 77], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = [torch.full((size,), 0.25) for size in sizes]
        shift(tensors, kind, 5, -1.5)
    finally:
        torch.set_num_threads(count)
    assert torch.equal(torch.cat(tensors), 0.25 + draw(kind, 5, 0, sum(sizes)) * -1.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shift_keeps_dtypes_and_strides(dtype):
    turned = torch.zeros(5, 3, dtype=dtype).t()
    shift([turned], "rademacher", 5, 0.1)
    wanted = (draw("rademacher", 5, 0, 15).double() * 0.1).to(dtype).view(3, 5)
    assert torch.equal(turned, wanted)
    assert not turned.is_contiguous()
