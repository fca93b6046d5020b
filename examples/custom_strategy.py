"""A strategy of your own: the server keeps momentum over rounds (FedAvgM, Hsu et al. 2019).

Overriding `step` keeps FedAvg's exact, streaming mean; overriding `aggregate_fit(server_round, results)` instead would hand
you the list of all updates.
"""

import torch

import fedcore


class Momentum(fedcore.FedAvg):
    """Moves the model by a running mean of the rounds' differences."""

    def __init__(self, *args, momentum=0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.momentum, self.velocity = momentum, {}

    def step(self, server_round, current, aggregate):
        moved = {}
        for name, tensor in current.items():
            if tensor.is_floating_point():
                change = aggregate[name] - tensor
                self.velocity[name] = self.momentum * self.velocity.get(name, torch.zeros_like(change)) + change
                moved[name] = tensor + self.velocity[name]
            else:
                moved[name] = aggregate[name]
        return moved

    def configure_fit(self, server_round, client_id):
        return {"lr": 0.3 / server_round}

    def state_dict(self):
        return {"velocity": self.velocity}

    def load_state_dict(self, state):
        self.velocity = dict(state["velocity"])


class Pulls(fedcore.Client):
    """Pulls the model towards a point of its own."""

    def __init__(self, goal):
        self.goal = goal

    def get_parameters(self):
        return {"w": torch.zeros(2)}

    def fit(self, parameters, config):
        w = parameters["w"]
        return {"w": w + config["lr"] * (self.goal - w)}, 1


if __name__ == "__main__":
    goals = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    _, final = fedcore.testing.run_federation(
        [Pulls(goal) for goal in goals],
        strategy=Momentum({"w": torch.zeros(2)}, min_fit_clients=2),
        config=fedcore.ServerConfig(num_rounds=30),
    )
    fedcore.testing.check_strategy(Momentum)
    print(f"the model went to {final['w'].tolist()}, between the clients' goals")
