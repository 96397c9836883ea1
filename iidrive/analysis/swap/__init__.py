"""Stages of several runs, recombined and scored."""
