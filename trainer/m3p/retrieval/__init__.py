"""Scoring, metrics, intervals and reports of image retrieval."""
