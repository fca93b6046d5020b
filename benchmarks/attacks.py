"""What Byzantine clients send, as functions of what honest ones changed: attacks of the literature."""

from statistics import NormalDist

import numpy as np


def alie_z(n, m):
    """Return how many standard deviations m of n clients may be off and still be nearer to the mean than enough others.

    A Little Is Enough: Baruch et al., NeurIPS 2019.
    """
    supporters = n // 2 + 1 - m
    return NormalDist().inv_cdf((n - m - supporters) / (n - m))


def alie(honest, z):
    """Return the mean less z standard deviations in each element."""
    return np.mean(honest, axis=0) - z * np.std(honest, axis=0)


def ipm(honest, epsilon):
    """Return the mean, turned round: Xie et al., Fall of Empires, UAI 2019."""
    return -epsilon * np.mean(honest, axis=0)


def sign_flip(honest, boost):
    """Return the mean, turned round and lengthened."""
    return -boost * np.mean(honest, axis=0)
