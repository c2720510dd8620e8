"""From raw corpora to shards, dictionaries and vocabularies."""
