"""Flower's side of peers.py, driven through its public API: the same clients, the same model, the same clock.

Roles of its older gRPC path: peers_flower.py server ADDRESS MEGABYTES CLIENTS ROUNDS, and peers_flower.py client ADDRESS. For
its SuperLink path peers.py packs this file as an app: ``server_app`` and ``client_app`` are what its processes load.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

LONGEST = (1 << 31) - 1  # bytes of one message of the older path


def model_of(megabytes):
    import torch

    return {f"layer.{i}.weight": torch.ones(megabytes * 2_500) for i in range(100)}


def gaps(times):
    return [later - earlier for earlier, later in pairwise(times)]


def server(address, megabytes, clients, rounds):
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerConfig, start_server
    from flwr.server.strategy import FedAvg

    times = []

    class Timed(FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            assert len(results) == clients, f"{len(results)} results, failures: {failures}"
            made = super().aggregate_fit(server_round, results, failures)
            times.append(time.perf_counter())
            return made

    initial = ndarrays_to_parameters([tensor.numpy() for tensor in model_of(megabytes).values()])
    strategy = Timed(fraction_evaluate=0.0, min_fit_clients=clients, min_available_clients=clients, initial_parameters=initial)
    config = ServerConfig(num_rounds=rounds)
    start_server(server_address=address, config=config, strategy=strategy, grpc_max_message_length=LONGEST)
    print(json.dumps(gaps(times)))


def client(address):
    from flwr.client import NumPyClient, start_client

    class Adds(NumPyClient):
        def fit(self, parameters, config):
            for array in parameters:
                array += 1
            return parameters, 1, {}

    start_client(server_address=address, client=Adds().to_client(), grpc_max_message_length=LONGEST)


def serving():
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app, times = ServerApp(), []

    class Timed(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            assert all(reply.has_content() for reply in replies), "a client failed"
            made = super().aggregate_train(server_round, replies)
            times.append(time.perf_counter())
            return made

    @app.main()
    def serve(grid, context):
        numbers = context.run_config
        clients = numbers["clients"]
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        try:
            strategy.start(grid, ArrayRecord(model_of(numbers["megabytes"])), num_rounds=numbers["rounds"])
        finally:
            Path(numbers["out"]).write_text(json.dumps(gaps(times)))

    return app


def training():
    import torch  # noqa: F401 - Flower makes tensors only where torch is imported, as any training app does
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message, context):
        parameters = message.content["arrays"].to_torch_state_dict()
        for tensor in parameters.values():
            tensor += 1
        records = {"arrays": ArrayRecord(parameters), "metrics": MetricRecord({"num-examples": 1})}
        return Message(content=RecordDict(records), reply_to=message)

    return app


ALONE = __name__ == "__main__"
server_app = None if ALONE else serving()
client_app = None if ALONE else training()

if ALONE and sys.argv[1] == "server":
    server(sys.argv[2], *map(int, sys.argv[3:6]))
elif ALONE:
    client(sys.argv[2])
