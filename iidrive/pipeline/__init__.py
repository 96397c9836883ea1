"""Recipes, training of each stage, loading of models, inference over a split, and evaluation."""
