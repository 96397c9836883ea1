"""Synthetic town: driving scenes generated from a seed."""
