"""What printed tables and predictions say about how they were made."""
