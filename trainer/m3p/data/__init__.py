"""From shards to micro-batches; knows nothing of the model."""
