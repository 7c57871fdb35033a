"""What is read from a checkpoint folder: its files, its settings, its stored tensors."""
