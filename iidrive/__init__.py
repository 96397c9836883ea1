"""iidrive: an II (intra-inter) occupancy world model, a planner on top of it, and scores that can be believed."""

__version__ = "0.1.0"
