"""One sample in three dimensions, as a page that needs no network (web/ holds what the browser gets)."""
