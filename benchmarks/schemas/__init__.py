"""Schemas that others wrote, with instances: which are served, what is refused and why, whether a mask lets through
what it should not, and whether an adversary gets an answer out of the engine that does not fit."""
