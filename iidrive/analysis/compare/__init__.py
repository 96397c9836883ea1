"""Comparison of two runs: from per-sample scores, or from printed tables."""
