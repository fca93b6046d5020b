"""One script that runs in memory, or as server or client over gRPC: quickstart.py [memory | server | client N]."""

import sys

import torch
from torch import nn

import fedcore


class MyClient(fedcore.Client):
    """Fits a line to private points; each client has points of its own."""

    def __init__(self, seed):
        self.model = nn.Linear(1, 1)
        self.x = torch.rand(100, 1, generator=torch.Generator().manual_seed(seed))

    def get_parameters(self):
        return self.model.state_dict()

    def fit(self, parameters, config):
        self.model.load_state_dict(parameters)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(self.x), 3 * self.x + 1)
            loss.backward()
            optimizer.step()
        return self.model.state_dict(), len(self.x), {"loss": loss}


role = sys.argv[1] if len(sys.argv) > 1 else "memory"
federation = {"strategy": fedcore.FedAvg(min_fit_clients=2), "config": fedcore.ServerConfig(num_rounds=10)}
if role == "client":
    sys.exit(fedcore.start_client("localhost:50051", MyClient(int(sys.argv[2])), client_id=sys.argv[2]))
if role == "server":
    history, final = fedcore.start_server("127.0.0.1:50051", **federation)
else:
    history, final = fedcore.testing.run_federation([MyClient(1), MyClient(2)], **federation)
print(f"y = {final['weight'].item():.3f} x + {final['bias'].item():.3f}; loss {history.latest['fit/loss']:.5f}")
