"""One reader a printed form: lines in, grids of cells or named values out. No reader knows what a number means."""
