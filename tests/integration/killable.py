"""A client in a process of its own: killable.py ADDRESS NAME. The one called "victim" says that it trains, and never ends."""

import sys
import threading

import torch

from fedcore import Client, start_client


class Adds(Client):
    def get_parameters(self):
        return {"w": torch.zeros(4)}

    def fit(self, parameters, config):
        if sys.argv[2] == "victim":
            sys.stdout.write("training\n")
            sys.stdout.flush()
            threading.Event().wait()
        return {"w": parameters["w"] + 1}, 10


start_client(sys.argv[1], Adds(), sys.argv[2])
