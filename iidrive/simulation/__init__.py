"""Closed loop: a planner at the wheel, in a world that goes on by itself and reacts."""
