"""`m3p ablate`: one recipe trained in several variants and seeds, and compared pair by pair."""
