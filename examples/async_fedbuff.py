"""Nobody waits for the slow one: FedAvg beside FedBuff on a fleet with one client ten times slower than the others.

Both train on handwritten digits until the model is right 9 times out of 10. The clients' speed is made up: each waits, before
it hands in, for as long as its machine is said to take.
"""

import threading
import time

import torch

import fedcore
from fedcore.data.digits import DigitsClient, DigitsModel, evaluate, load_digits
from fedcore.data.partition import dirichlet
from fedcore.testing import run_federation

CLIENTS, FAST, SLOW, GOAL = 8, 0.15, 1.5, 0.9


class Paced(DigitsClient):
    """Takes ``seconds`` for a round's training."""

    def __init__(self, data, seconds):
        super().__init__(data)
        self.seconds = seconds

    def fit(self, parameters, config):
        began, done = time.monotonic(), super().fit(parameters, config)
        threading.Event().wait(self.seconds - (time.monotonic() - began))
        return done


def seconds_to_goal(make, config):
    """Return how long a strategy takes to reach the goal, and in how many rounds."""
    whole, test = load_digits()
    parts = dirichlet(whole.labels, CLIENTS, 0.5, seed=0)
    clients = [Paced(whole.take(part), FAST if number else SLOW) for number, part in enumerate(parts)]
    began, reached = time.monotonic(), []

    def judge(number, parameters):
        loss, metrics = evaluate(parameters, test)
        if metrics["accuracy"] >= GOAL and not reached:
            reached.extend([time.monotonic() - began, number])
        return loss, metrics

    strategy = make(DigitsModel().state_dict(), judge)
    run_federation(clients, strategy=strategy, config=config, timeout=300)
    return reached


if __name__ == "__main__":
    torch.set_num_threads(1)  # the clients share few cores
    took, rounds = seconds_to_goal(
        lambda model, judge: fedcore.FedAvg(model, judge, min_fit_clients=CLIENTS, clients_per_round=CLIENTS),
        fedcore.ServerConfig(num_rounds=4),
    )
    print(f"FedAvg:  {GOAL:.0%} after {took:5.1f} s and {rounds} rounds, each as long as the slow client takes")
    quick, rounds = seconds_to_goal(
        lambda model, judge: fedcore.FedBuff(model, judge, buffer_size=4), fedcore.ServerConfig(num_rounds=14)
    )
    print(f"FedBuff: {GOAL:.0%} after {quick:5.1f} s and {rounds} buffers of 4 updates; {took / quick:.1f} times as fast")
