"""Occupancy labels for scenes that have none, from boxes, the map, ground heights and, if available, lidar sweeps."""
