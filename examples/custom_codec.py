"""A codec of your own: float32 tensors travel as bfloat16, half the bytes, lossy.

In a package of yours, an entry point makes it known to everybody who installs it:

    [project.entry-points."fedcore.codecs"]
    half = "my_package.half:Half"
"""

import torch

import fedcore
from fedcore.codec import Wrapper
from fedcore.parameters import Spec, TensorInfo
from fedcore.registry import register


class Half(Wrapper):
    """Rounds float32 to bfloat16 before the inner codec, and widens it again behind it."""

    part = "half"
    lossless = False

    def encode(self, shard, *, base=None, state=None):
        narrow = {name: t.bfloat16() if t.dtype is torch.float32 else t for name, t in shard.items()}
        return self.inner.encode(narrow, base=base, state=state)

    def decode(self, frame, spec, *, base=None, into=None):
        narrow = Spec(tuple(TensorInfo(i.name, _narrow(i.dtype), i.shape) for i in spec.entries))
        wide = {i.name: torch.empty(i.shape, dtype=getattr(torch, i.dtype)) for i in spec.entries} if into is None else into
        for name, tensor in self.inner.decode(frame, narrow).items():
            wide[name].copy_(tensor)
        return dict(wide)


def _narrow(dtype):
    return "bfloat16" if dtype == "float32" else dtype


class Steps(fedcore.Client):
    """Stands for your training code."""

    def get_parameters(self):
        return {"w": torch.zeros(1000)}

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 0.25}, 1


if __name__ == "__main__":
    register("codecs", "half", Half)
    fedcore.testing.check_codec(fedcore.registry.codec("safetensors+half"))
    for codec in ("safetensors", "safetensors+half"):
        history, final = fedcore.testing.run_federation(
            [Steps(), Steps()],
            strategy=fedcore.FedAvg({"w": torch.zeros(1000)}, min_fit_clients=2),
            codec=codec,  # both sides name it, and so accept it
        )
        sent = history.rounds[0].bytes_received
        print(f"{codec}: {sent} bytes received in round 1, the model is {final['w'][0].item()}")
