"""What the processes of a chain of agents use of the machine, read from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chain_of_agents.network import ChainOfAgents

__all__ = ["Use", "resident", "use_of"]


@dataclass(frozen=True)
class Use:
    """Seconds of CPU that the nodes and the agents of `n` members have used, all together, at a time."""

    at: float
    node_s: float
    agent_s: float
    n: int

    def __sub__(self, before: Use) -> Use:
        return Use(self.at - before.at, self.node_s - before.node_s, self.agent_s - before.agent_s, self.n)

    @property
    def node_cpu_percent(self) -> float:
        """Of one core, by one node (of a difference of two)."""
        return 100 * self.node_s / self.at / self.n

    @property
    def agent_cpu_percent(self) -> float:
        """Of one core, by one agent (of a difference of two)."""
        return 100 * self.agent_s / self.at / self.n


def use_of(chain: ChainOfAgents, indexes: Sequence[int]) -> Use:
    """What these agents and their nodes have used until now."""
    nodes, agents = (sum(_cpu_s(_pid(chain, i, kind)) for i in indexes) for kind in ("node", "agent"))
    return Use(time.monotonic(), nodes, agents, len(indexes))


def resident(chain: ChainOfAgents, index: int, kind: str) -> int:
    """Resident bytes of an agent ("agent") or of its node ("node")."""
    return int(_proc(_pid(chain, index, kind), "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _pid(chain: ChainOfAgents, index: int, kind: str) -> int:
    return int(chain.last(index, "started")["node"] if kind == "node" else chain.last(index, "loaded")["pid"])


def _cpu_s(pid: int) -> float:
    fields = _proc(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()
