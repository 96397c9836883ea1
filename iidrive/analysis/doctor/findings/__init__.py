"""What the doctor says: each finding a function of typed tables, whatever they were printed as."""
