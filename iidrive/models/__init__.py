"""Tokenizer, world model, planner, baselines, and the layers and losses that they are made of."""
