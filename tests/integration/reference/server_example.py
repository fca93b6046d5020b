import torch
from fedcore import start_server, ServerConfig, Grpc
from fedcore import FedAvg

# Define model
model = SimpleCNN()

# Define evaluation function
def evaluate_fn(round_num, parameters):
    model.load_state_dict(parameters)
    # Evaluate on test set
    return test_loss, {'accuracy': accuracy}

# Create strategy
strategy = FedAvg(
    initial_parameters=model.state_dict(),
    evaluate_fn=evaluate_fn,
    min_fit_clients=2,
    clients_per_round=5
)

# Create config
config = ServerConfig(num_rounds=10)

# Start server
history, final_params = start_server(
    server_address="0.0.0.0:50051",
    config=config,
    strategy=strategy,
    transport=Grpc(insecure=True)
)

# Save final model
torch.save(final_params, "final_model.pt")
