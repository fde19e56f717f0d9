"""A whole service on one machine: EVM chain, operators, agents with their validators, and the view of them.

Import the modules you need (`quorate.localnet.anvil`, `quorate.localnet.agents`, ...): this one stays empty, so that
the command line starts fast.
"""
