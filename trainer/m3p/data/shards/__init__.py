"""Shards as they lie on disk: tars, their index, their manifest."""
