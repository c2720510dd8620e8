"""The local page and JSON API over an index."""
