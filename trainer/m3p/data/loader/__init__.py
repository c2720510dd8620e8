"""Worker processes and threads that make micro-batches."""
