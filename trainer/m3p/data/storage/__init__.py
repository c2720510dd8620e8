"""Where shards lie, and how their samples are read: local folders, URLs, the cache of a node."""
