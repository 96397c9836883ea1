"""The job: recipes, training a stage, loading a model, inference over a split, evaluation."""
