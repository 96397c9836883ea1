"""nuScenes in the official layout."""
