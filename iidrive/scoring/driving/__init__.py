"""Driving for seconds on end: the controller that follows a plan, and the score of what was driven."""
