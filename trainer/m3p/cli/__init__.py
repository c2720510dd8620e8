"""The command `m3p`."""
