"""CAFE, dataset condensation by aligning features, in plain PyTorch."""
