"""Random directions from a seed, the same bits on every platform, on every device and with any number of threads.

Words come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011), a function
of a 64-bit seed and a counter. So any stretch of a direction can be drawn by itself, and none is ever kept as a whole.

An element of a Rademacher direction is a bit, 0 for -1 and 1 for 1: element i is bit ``i % 32`` of word ``i % 128 // 32`` of
block ``i // 128``. One of a Gaussian is the upper 24 bits of word ``i % 4`` of block ``i // 4`` through the inverse of the
normal distribution: Giles, Approximating the erfinv Function, GPU Computing Gems, 2011, in float64, rounded to float32; its
error is below 1e-6, the largest magnitude 5.42. No step of it takes more than the operations that IEEE 754 rounds correctly,
and none comes from a mathematical library, which would differ from machine to machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fedcore.parameters import working

Kind: TypeAlias = Literal["rademacher", "gaussian"]
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")

_MASK = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_PER_BLOCK = {"rademacher": 128, "gaussian": 4}
_STRETCH = 1 << 16  # elements drawn at a time, a multiple of both
_KEPT = 64  # stretches that are not drawn again at once: all of a small model's step
_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047, 1.00167406,
    2.83297682,
)  # fmt: skip
_LN2, _SQRT2 = 0.6931471805599453, 1.4142135623730951


def philox(counter: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return four words for each of many counters.

    Args:
        counter: four int64 tensors of one shape that hold 32-bit words, the lowest first.
        seed: 64 bits.
    """
    key = [seed & _MASK, seed >> 32 & _MASK]
    a, b, c, d = counter
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # what is above 64 bits wraps: the 64 below are the product's
        a, b, c, d = (right >> 32 & _MASK) ^ b ^ key[0], right & _MASK, (left >> 32 & _MASK) ^ d ^ key[1], left & _MASK
        key = [(key[0] + _WEYL[0]) & _MASK, (key[1] + _WEYL[1]) & _MASK]
    return [a, b, c, d]


def seeds(seed: int, step: int, count: int) -> list[int]:
    """Return so many 64-bit seeds for one of 2**32 steps, drawn from another seed; no direction has a word of theirs."""
    index = torch.arange(count)
    nothing = torch.zeros_like(index)
    low, high, _, _ = philox([index, nothing, nothing + (step & _MASK), nothing + 1], seed)
    return [a | b << 32 for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def draw(kind: Kind, seed: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the elements ``start`` to ``start + count`` of a direction, as float32."""
    per = _PER_BLOCK[kind]
    first, end = start // per, -(-(start + count) // per)
    index = torch.arange(first, end, device=device)
    nothing = torch.zeros_like(index)
    words = torch.stack(philox([index & _MASK, index >> 32, nothing, nothing], seed), dim=1)
    made = _signs(words) if kind == "rademacher" else _normal(words)
    return made.view(-1)[start - first * per :][:count]


_drawn = lru_cache(maxsize=_KEPT)(draw)


def shift(tensors: Iterable[Tensor], kind: Kind, seed: int, length: float) -> None:
    """Move tensors in place by ``length`` times a direction, which runs through them in their order.

    Arithmetic is in float32, in float64 for float64 tensors: the product is rounded, then the sum, then to the tensor's dtype.

    Args:
        tensors: floating-point; each counts once for each time that it is given.
        kind: of the direction.
        seed: of the direction.
        length: what it is multiplied by.
    """
    listed = list(tensors)
    for tensor, places, stretch in _stretches(listed, kind, seed):
        wide = working(tensor.dtype)
        step = stretch.to(tensor.device, wide) * torch.tensor(length, dtype=wide)
        part = tensor[places]
        part.copy_(part.to(wide) + step)


def _stretches(tensors: list[Tensor], kind: Kind, seed: int) -> Iterator[tuple[Tensor, slice, Tensor]]:
    """Yield piece by piece a flat tensor, a place in it, and the elements of the direction for there."""
    total, offset = sum(tensor.numel() for tensor in tensors), 0
    drawn, begin = torch.empty(0), 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1)
        done = 0
        while done < flat.numel():
            if offset == begin + drawn.numel():
                drawn, begin = _drawn(kind, seed, offset, min(_STRETCH, total - offset), tensor.device), offset
            count = min(flat.numel() - done, begin + drawn.numel() - offset)
            yield flat, slice(done, done + count), drawn[offset - begin :][:count]
            done, offset = done + count, offset + count
        if not tensor.is_contiguous():
            tensor.detach().copy_(flat.view_as(tensor))


def _signs(words: Tensor) -> Tensor:
    places = torch.arange(0, 32, 8, device=words.device)
    octets = (words.unsqueeze(-1) >> places & 0xFF).to(torch.uint8)
    bits = octets.unsqueeze(-1) >> torch.arange(8, device=words.device, dtype=torch.uint8) & 1
    return bits.to(torch.float32).mul_(2).sub_(1)


def _normal(words: Tensor) -> Tensor:
    uniform = ((words >> 8).double() + 0.5) * 2.0**-24  # the formula is for so many
    distance = -_log(4 * uniform * (1 - uniform))
    centre = _polynomial(_CENTRE, distance - 2.5)
    tail = _polynomial(_TAIL, distance.sqrt() - 3)
    return (torch.where(distance < 5, centre, tail) * (2 * uniform - 1) * _SQRT2).float()


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        value = value * x + each
    return value


def _log(x: Tensor) -> Tensor:
    """Return the natural logarithm, below 1e-12 off, of positive numbers, by the series of the hyperbolic tangent's inverse."""
    mantissa, exponent = torch.frexp(x)  # from 1/2 to 1
    ratio = (mantissa - 1) / (mantissa + 1)
    odd = [1 / n for n in range(25, 0, -2)]
    return exponent.double() * _LN2 + 2 * ratio * _polynomial(odd, ratio * ratio)
