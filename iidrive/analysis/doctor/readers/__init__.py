"""One reader per printed form: text lines in, grids of cells or named values out. Readers do not interpret the numbers."""
