"""Tensors as memory: neighbours are one stretch, everything else is not, and nothing outlives its owner."""

import gc

import numpy as np
import pytest
import torch

from fedcore.parameters import Spec
from fedcore.views import contiguous, elements, raw_bytes, regions


def joined(views):
    return b"".join(bytes(view) for view in views)


def test_tensors_side_by_side_are_one_stretch():
    blank = Spec.of({"a": torch.zeros(3, 5), "b": torch.zeros(7), "e": torch.zeros(0), "c": torch.zeros(())}).blank()
    for number, tensor in enumerate(blank.values()):
        tensor.fill_(number)
    (stretch,) = regions(blank.values())
    assert stretch.nbytes == 4 * (15 + 7 + 1)
    assert bytes(stretch) == joined(map(raw_bytes, blank.values()))


def test_others_are_stretches_of_their_own():
    tensors = [torch.arange(3.0), torch.arange(4.0), torch.arange(3.0)]
    assert [view.nbytes for view in regions(tensors)] == [12, 16, 12]
    assert [view.nbytes for view in regions(reversed(list(torch.arange(6.0).split(2))))] == [8, 8, 8]


@pytest.mark.parametrize("tensor", [
    torch.arange(12.0).view(3, 4).t(), torch.arange(12.0)[::2], torch.zeros(1).expand(5), torch.ones(3).requires_grad_(),
    torch.arange(5).bfloat16(), torch.tensor([True, False]),
])  # fmt: skip
def test_whatever_its_layout(tensor):
    plain = tensor.detach().contiguous().clone()
    assert bytes(raw_bytes(tensor)) == plain.view(-1).view(torch.uint8).numpy().tobytes()


def test_a_view_is_the_tensors_own_memory():
    tensor = torch.zeros(4)
    np.frombuffer(raw_bytes(tensor), np.float32)[:] = 3
    assert tensor.tolist() == [3.0] * 4


def test_a_view_keeps_its_tensor():
    views = regions([torch.full((1000,), 5.0)])
    gc.collect()
    others = [torch.zeros(1000) for _ in range(50)]
    assert np.frombuffer(views[0], np.float32).min() == 5.0
    assert len(others) == 50


def test_elements_of_any_float():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        tensor = torch.tensor([[1.5, -2.0], [0.5, 4.0]]).to(dtype)
        assert elements(tensor).tolist() == [1.5, -2.0, 0.5, 4.0]


def test_contiguous_copies_only_what_is_not():
    plain, turned = torch.zeros(3, 4), torch.zeros(3, 4).t()
    made = contiguous({"a": plain, "b": turned, "c": torch.ones(2).requires_grad_()})
    assert made["a"] is plain
    assert made["b"].is_contiguous()
    assert not made["c"].requires_grad
