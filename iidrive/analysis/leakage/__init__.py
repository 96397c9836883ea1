"""Whether a model sees what it must not see."""
