"""The server of a federation on handwritten digits. In two more terminals: python examples/digits_client.py 0 (and 1)."""

import sys

import fedcore
from fedcore.codecs.safetensors import save
from fedcore.data.digits import DigitsModel, evaluate, load_digits
from fedcore.observers.console import Console

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"

_, test = load_digits()
strategy = fedcore.FedAvg(
    initial_parameters=DigitsModel().state_dict(),
    evaluate_fn=lambda server_round, parameters: evaluate(parameters, test),
    min_fit_clients=2,
    clients_per_round=2,
)
with Console() as console:
    history, final = fedcore.start_server(
        ADDRESS, fedcore.ServerConfig(num_rounds=10, heartbeat_interval=1.0), strategy, observers=[console]
    )
save("digits.safetensors", final)
print(f"accuracy {history.latest['accuracy']:.3f}; the model is in digits.safetensors")
