"""Occupancy labels for scenes that have none, from boxes, the map, the ground's height and, where they are there, lidar sweeps."""
