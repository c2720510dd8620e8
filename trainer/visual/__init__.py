"""Visual sources: what a picture becomes, from bytes to tokens."""
