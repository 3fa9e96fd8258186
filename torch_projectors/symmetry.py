import torch
def operators(name):
    return torch.eye(3,dtype=torch.float64)[None]
