import torch
from fedcore import Client, start_client

class MNISTClient(Client):
    def __init__(self, model, train_loader):
        self.model = model
        self.train_loader = train_loader
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    
    def get_parameters(self):
        return self.model.state_dict()
    
    def fit(self, parameters, config):
        self.model.load_state_dict(parameters)
        self.model.train()
        
        for epoch in range(5):
            for data, target in self.train_loader:
                self.optimizer.zero_grad()
                output = self.model(data)
                loss = F.cross_entropy(output, target)
                loss.backward()
                self.optimizer.step()
        
        return self.model.state_dict(), len(self.train_loader.dataset)

# Create client
model = SimpleCNN()
client = MNISTClient(model, train_loader)

# Connect to server
start_client(
    server_address="localhost:50051",
    client=client,
    client_id="client_1"
)
