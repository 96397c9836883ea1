"""Doctor: examines printed tables, predictions and occupancy for errors in how they were made."""
