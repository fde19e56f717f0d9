"""What a long life costs: memory and disk over many rounds, then restarts and wipes over the long, pruned chain.

`./quorate bench endurance [--rounds 10000] [--json]`. Four validators with instant acts on one machine, data on a RAM
disk, 2,200 blocks kept (the fewest that hold ten snapshots), so that most of the chain is pruned.

- `rss_growth_bytes_per_round.agent`, `.node`: slope of resident memory over the second half (median of all slopes
  between two samples that lie a fourth of the run apart or more: Theil-Sen), the mean of the four.
- `rss_mib.*`: resident memory after a tenth, at half and at the end.
- `disk_bytes.*`: what lies on one agent's disk at half and at the end, by kind.
- `restart_s`: kill -9, then from the start of the process until it is as far as the others (less than 0.5 s behind),
  while they go on. `wiped_s`: the same with all but keys and signing state taken away. Median and worst of `times`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import resident
from tests.chain_of_agents.network import ChainOfAgents

__all__ = ["growth", "measure", "render"]

_SAMPLES = 100
_KINDS = ("agent", "node")
_PLACES = {
    "blocks": "data/blockstore.db",
    "state": "data/state.db",
    "wal": "data/cs.wal",
    "evidence": "data/evidence.db",
    "snapshots": "snapshots",
    "app": "app.db*",
    "events": "*.jsonl",
    "logs": "*.log",
}


async def measure(rounds: int, times: int) -> dict[str, Any]:
    """All figures by name; needs QUORATE_COMETBFT."""
    load = os.getloadavg()[0]
    async with ChainOfAgents("counting", blocks=2200, snapshot_every=200, snapshots=10) as chain:
        chain.start()
        start = time.monotonic()
        grown = await growth(chain, rounds)
        took = time.monotonic() - start
        figures: dict[str, Any] = {
            "rounds": rounds,
            "rounds_per_s": round(rounds / took, 1),
            "height": chain.height(0),
            **{f"rss_growth_bytes_per_round.{kind}": round(grown[kind], 1) for kind in _KINDS},
            **{f"rss_mib.{kind}": grown[f"{kind}_mib"] for kind in _KINDS},
            **{f"disk_bytes.{name}": sizes for name, sizes in grown["disk"].items()},
        }
        for name, lose in (("restart_s", chain.kill), ("wiped_s", chain.wipe)):
            seconds = []
            for turn in range(times):
                index = turn % chain.n
                await lose(index)
                await asyncio.sleep(2)
                since = time.monotonic()
                chain.start(index)
                seconds.append(await chain.until_level(index, since=since))
                await asyncio.sleep(3)
            figures |= {name: round(statistics.median(seconds), 1), f"{name}.max": round(max(seconds), 1)}
        chain.assert_equal_digests()
    return figures | {"times": times, "cores": os.cpu_count(), "load_before": round(load, 1)}


async def growth(chain: ChainOfAgents, rounds: int) -> dict[str, Any]:
    """Run a started chain for `rounds` rounds; bytes that each kind of process grew by per round, and disk by place."""
    samples: dict[str, list[list[tuple[int, int]]]] = {kind: [[] for _ in range(chain.n)] for kind in _KINDS}
    disk: dict[str, list[int]] = {name: [] for name in _PLACES}
    timeout_s = 60 + rounds
    for at in (round(step * rounds / _SAMPLES) for step in range(1, _SAMPLES + 1)):
        await chain.until_settled(at, 0, timeout_s=timeout_s)
        now = chain.settled(0)
        for kind, index in itertools.product(_KINDS, range(chain.n)):
            samples[kind][index].append((now, resident(chain, index, kind)))
        if at == rounds or abs(2 * at - rounds) <= rounds / _SAMPLES / 2:
            for name, pattern in _PLACES.items():
                disk[name].append(_bytes(chain.homes[0], pattern))
    result: dict[str, Any] = {"disk": disk}
    for kind in _KINDS:
        result[kind] = statistics.mean(_slope(own[len(own) // 2 :]) for own in samples[kind])
        result[f"{kind}_mib"] = [
            round(statistics.mean(own[at][1] for own in samples[kind]) / 2**20, 1)
            for at in (_SAMPLES // 10, _SAMPLES // 2, -1)
        ]
    return result


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Theil-Sen: the median slope between two points that lie half of the points apart or more."""
    far = len(points) // 2
    pairs = ((a, b) for i, a in enumerate(points) for b in points[i + far :])
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0])


def _bytes(home: Path, pattern: str) -> int:
    return sum(_size(file) for path in home.glob(pattern) for file in (path, *path.rglob("*")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # just pruned
        return 0


def render(figures: Mapping[str, Any]) -> str:
    """The figures as a table for people."""
    return "\n".join(f"{name:<34} {value}" for name, value in figures.items())
