"""What watches a run: figures, losses, stalls, memory."""
