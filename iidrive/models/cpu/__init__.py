"""Faster arithmetic for CPUs, equal to the plain formulas of `iidrive.models.plain`."""
