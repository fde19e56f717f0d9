"""Runs one agent of a service inside open-aea: the only package here that imports `aea`."""
