"""Networks: what they are, how they are kept, how they run over a tile. The only part that imports PyTorch."""
