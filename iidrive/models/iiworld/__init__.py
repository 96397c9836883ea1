"""Reference implementation: arithmetic and parameter names of the published II-World code."""
