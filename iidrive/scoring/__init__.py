"""Arrays in, numbers out: cases, readers, protocols, occupancy scores."""
