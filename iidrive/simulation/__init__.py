"""Closed-loop simulation: a planner drives the ego in a synthetic town whose road users react to it."""
