"""The embedded data set: drawn pictures of two shapes, captioned by grammar in six languages; needs no download."""
