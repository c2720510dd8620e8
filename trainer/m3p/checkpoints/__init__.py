"""Checkpoints: whole or absent, read by any number of ranks."""
