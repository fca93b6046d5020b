"""Nobody waits for the slow one: FedAvg beside FedBuff on a fleet with one client ten times slower than the others.

Both train on handwritten digits until the model is right 9 times out of 10, or as often as ``--goal`` says. The clients' speed
is made up: each waits, before it hands in, for as long as its machine is said to take.
"""

import argparse
import threading
import time

import torch

import fedcore
from fedcore.data.digits import DigitsClient, DigitsModel, evaluate, load_digits
from fedcore.data.partition import dirichlet
from fedcore.testing import run_federation

CLIENTS, SLOWER = 8, 10


class Paced(DigitsClient):
    """Takes ``seconds`` for a round's training."""

    def __init__(self, data, seconds):
        super().__init__(data)
        self.seconds = seconds

    def fit(self, parameters, config):
        began, done = time.monotonic(), super().fit(parameters, config)
        threading.Event().wait(self.seconds - (time.monotonic() - began))
        return done


def seconds_to_goal(make, rounds, goal, fast):
    """Return how long a strategy takes to reach the goal, and in how many rounds."""
    whole, test = load_digits()
    parts = dirichlet(whole.labels, CLIENTS, 0.5, seed=0)
    clients = [Paced(whole.take(part), fast if number else SLOWER * fast) for number, part in enumerate(parts)]
    began, reached = time.monotonic(), []

    def judge(number, parameters):
        loss, metrics = evaluate(parameters, test)
        if metrics["accuracy"] >= goal and not reached:
            reached.extend([time.monotonic() - began, number])
        return loss, metrics

    strategy = make(DigitsModel().state_dict(), judge)
    run_federation(clients, strategy=strategy, config=fedcore.ServerConfig(num_rounds=rounds), timeout=1800)
    if not reached:
        raise SystemExit(f"{goal:.1%} was not reached in {rounds} rounds")
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goal", type=float, default=0.9, help="accuracy to be reached (default: 0.9)")
    parser.add_argument("--fast", type=float, default=0.5, help="seconds that fast clients take for a round (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=4, help="of FedAvg (default: 4)")
    parser.add_argument("--buffers", type=int, default=14, help="of FedBuff, four updates each (default: 14)")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the clients share few cores
    took, rounds = seconds_to_goal(
        lambda model, judge: fedcore.FedAvg(model, judge, min_fit_clients=CLIENTS, clients_per_round=CLIENTS),
        given.rounds, given.goal, given.fast,
    )  # fmt: skip
    print(f"FedAvg:  {given.goal:.1%} after {took:5.1f} s and {rounds} rounds, each as long as the slow client takes")
    quick, rounds = seconds_to_goal(  # half of the clients fill a buffer: what they change overlaps little, so steps are whole
        lambda model, judge: fedcore.FedBuff(model, judge, buffer_size=4, server_lr=1.0),
        given.buffers, given.goal, given.fast,
    )  # fmt: skip
    print(f"FedBuff: {given.goal:.1%} after {quick:5.1f} s and {rounds} buffers of 4 updates; {took / quick:.1f} times as fast")
