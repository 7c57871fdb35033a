"""Reads checkpoint folders in hub format: files, settings, stored tensors."""
