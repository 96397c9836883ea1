"""Argoverse 2 sensor logs in the official layout."""
