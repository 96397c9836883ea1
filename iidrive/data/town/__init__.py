"""Synthetic towns: scenes made from a seed, embedded in the package."""
