"""What a test of a service needs: all agents in one process, under a virtual clock, with faults on demand."""

from __future__ import annotations

from quorate.testing.network import Diverged, Network, Stalled, agent_address

__all__ = ["Diverged", "Network", "Stalled", "agent_address"]
