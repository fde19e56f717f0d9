"""A service in two versions, each in a folder as operators have it: what an upgrade is tested with."""
