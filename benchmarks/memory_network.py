"""How many rounds a second the in-memory network runs: four replicas of hello_world, their acts, blocks and digests.

`python -m benchmarks.memory_network` prints JSON. The best of several runs is given beside the median: what else the
machine does can only take away.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time

from quorate.testing import Network
from services.hello_world.service import service

__all__ = ["measure"]

ROUNDS, RUNS = 2_000, 5


def measure(rounds: int = ROUNDS, runs: int = RUNS) -> dict[str, float]:
    """`rounds_per_s` (median) and `best_rounds_per_s` by the wall clock, `cpu_us_per_round` (median)."""
    walls, cpus = zip(*(asyncio.run(_run(rounds)) for _ in range(runs)), strict=True)
    return {
        "rounds_per_s": round(rounds / statistics.median(walls)),
        "best_rounds_per_s": round(rounds / min(walls)),
        "cpu_us_per_round": round(statistics.median(cpus) / rounds * 1e6),
    }


async def _run(rounds: int) -> tuple[float, float]:
    async with Network(service, agents=4, seed=1) as net:
        wall, cpu = time.perf_counter(), time.process_time()
        await net.run_until(when=lambda network: len(network.rounds) >= rounds, timeout_s=10**7)
        return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    print(json.dumps({"memory_network": measure()}))
