"""The network; knows nothing of ranks, ZeRO or files."""
