"""Tokenizer, world model, planner and baselines, with their layers and losses."""
