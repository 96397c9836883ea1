"""Open-loop planning protocols, one file per evaluator."""
