"""Large buffers: used again once nobody looks at them, and not before."""

import gc

import numpy as np
import pytest
import torch

from fedcore.parameters import Spec
from fedcore.pool import borrow, drain

SIZE = (1 << 20) + 64


def place(memory):
    return memory.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def empty():
    drain()
    yield
    drain()


def test_a_buffer_that_went_back_is_used_again():
    first = borrow(SIZE)
    at = place(first)
    del first
    assert place(borrow(SIZE)) == at


def test_two_at_a_time_are_two():
    first, second = borrow(SIZE), borrow(SIZE)
    first[:], second[:] = 1, 2
    assert int(first.max()) == 1


def test_whoever_keeps_a_tensor_keeps_its_memory():
    blank = Spec.of({"a": torch.zeros(300_000), "b": torch.zeros(4)}).blank()
    kept = blank["b"][1:].fill_(7)
    del blank
    gc.collect()
    others = [borrow(1_200_064 + 0) for _ in range(4)]
    for other in others:
        other[:] = 0
    assert kept.tolist() == [7, 7, 7]


def test_other_sizes_are_other_buffers():
    first = borrow(SIZE)
    del first
    assert borrow(SIZE + 1).size == SIZE + 1


def test_small_ones_are_left_to_the_allocator():
    made = []

    def make(nbytes):
        made.append(nbytes)
        return np.empty(nbytes, np.uint8)

    assert borrow(100, make).size == 100
    assert borrow(SIZE, make).size == SIZE
    assert made == [SIZE]


def test_drain_gives_back():
    calls = []

    def make(nbytes):
        calls.append(nbytes)
        return np.empty(nbytes, np.uint8)

    borrow(SIZE, make)
    drain()
    borrow(SIZE, make)
    assert len(calls) == 2
