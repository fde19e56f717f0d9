"""A chain of agents for tests and benchmarks: real CometBFT nodes, each with its agent in a process of its own."""
