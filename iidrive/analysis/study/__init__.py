"""Does a world model help the planner? The same planner with and without an imagined future, in open and in closed loop."""
