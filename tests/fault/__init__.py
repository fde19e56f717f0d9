"""Faults of real nodes: what is done to a running chain of agents, and what must hold after it."""
