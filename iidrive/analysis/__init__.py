"""What a number is worth: comparisons, diagnoses, audits, swaps, lineage."""
