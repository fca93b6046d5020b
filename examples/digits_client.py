"""One of two clients on handwritten digits, each with its own half of them: digits_client.py 0|1 [ADDRESS]."""

import sys

import fedcore
from fedcore.data.digits import DigitsClient, load_digits
from fedcore.data.partition import dirichlet

index = int(sys.argv[1])
address = sys.argv[2] if len(sys.argv) > 2 else "localhost:50051"

train, _ = load_digits()
share = dirichlet(train.labels, 2, 0.5, seed=0)[index]
fedcore.start_client(address, DigitsClient(train.take(share)), client_id=f"digits-{index}")
print(f"client {index}: done")
