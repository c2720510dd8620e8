"""Fused operations, each beside its plain reference, which also runs where the fused one does not."""
