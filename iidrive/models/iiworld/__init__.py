"""The published II-World implementation's arithmetic and parameter names."""
