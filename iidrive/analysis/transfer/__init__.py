"""What towns teach about real streets: one table over models that were trained on towns, on real data, and on both in turn."""
