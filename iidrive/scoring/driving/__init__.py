"""Closed-loop driving: the controller that follows a plan, and the score of a drive."""
