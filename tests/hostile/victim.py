"""An honest client: told an address, it takes part until that ends, and says how. It must outlive everything it is told.

Settings: ``folder`` to work in; ``kit``: a folder with certificates that it has if the address is behind the word ``tls``.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "load"))

import torch
from procs import say, settings, told

from fedcore import Client, Grpc, Limits, SitePolicy, start_client
from fedcore.security import TLS

SITE = SitePolicy(max_model_bytes=1 << 20, config={"local_epochs": (1, 10)})
UNLIMITED = SitePolicy()


class Trains(Client):
    def get_parameters(self):
        return {"w": torch.zeros(4)}

    def fit(self, parameters, config):
        return parameters, 1


def main(folder, kit):
    os.chdir(folder)
    torch.set_num_threads(1)
    say(ready=True)
    for words in told():
        how, address = words.split()
        wire = Grpc(tls=TLS.kit(kit)) if how == "tls" else Grpc()
        site = UNLIMITED if how == "unlimited" else SITE
        try:
            start_client(address, Trains(), "victim", transport=wire, site=site, patience=1.0, limits=Limits(stall_timeout=1.0))
            say(ended="at the end of the run")
        except Exception as error:
            say(ended=f"{type(error).__name__} {getattr(error, 'reason', '')}".strip(), text=str(error))


if __name__ == "__main__":
    main(**settings())
