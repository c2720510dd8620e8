"""Published sets of captions, as they are published: one file a format."""
