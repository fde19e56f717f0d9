"""How long a round takes when acts are instant: ours beside transactions alone and beside CometBFT's own settings.

    QUORATE_COMETBFT=... python -m benchmarks.rounds [--agents 4] [--seconds 15] [--only hybrid]

Prints one JSON object. All agents and nodes run on this machine, data on a RAM disk; `load` is its load average before
the run: near or above the number of cores, the figures are upper bounds. The second case starts acts early too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
from typing import Any

from tests.chain_of_agents.network import ChainOfAgents

__all__ = ["measure"]

_COMETBFT_DEFAULTS = {
    "p2p.flush_throttle_timeout": '"100ms"',
    "consensus.timeout_propose": '"3s"',
    "consensus.timeout_propose_delta": '"500ms"',
    "consensus.timeout_prevote": '"1s"',
    "consensus.timeout_prevote_delta": '"500ms"',
    "consensus.timeout_precommit": '"1s"',
    "consensus.timeout_precommit_delta": '"500ms"',
    "consensus.timeout_commit": '"1s"',
    "consensus.skip_timeout_commit": "false",
    "consensus.create_empty_blocks": "true",
    "consensus.create_empty_blocks_interval": '"0s"',
    "consensus.peer_gossip_sleep_duration": '"100ms"',
    "consensus.peer_query_maj23_sleep_duration": '"2s"',
}
CASES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "transactions only": {"uses_extensions": False},
    "transactions only, CometBFT's defaults": {"uses_extensions": False, "settings": _COMETBFT_DEFAULTS},
}
_WARM_UP_ROUNDS = 5


async def measure(agents: int, seconds: float, **options: Any) -> dict[str, Any]:
    """Time between two settled rounds as the first agent saw them commit."""
    async with ChainOfAgents("counting", agents, **options) as chain:
        chain.start()
        await chain.until_settled(_WARM_UP_ROUNDS, timeout_s=90)
        first, height = chain.settled(0), chain.height(0)
        await asyncio.sleep(seconds)
        rounds, blocks = chain.settled(0) - first, chain.height(0) - height
        times = [event["t"] for event in chain.events(0, "settled") if event["sequence"] >= first]
        gaps = sorted(1000 * (after - before) for before, after in itertools.pairwise(times))
        chain.assert_equal_digests()
    return {
        "p50_ms": round(statistics.median(gaps), 1),
        "p95_ms": round(gaps[int(0.95 * len(gaps))], 1),
        "max_ms": round(gaps[-1], 1),
        "rounds_per_s": round(rounds / seconds, 2),
        "blocks_per_round": round(blocks / max(1, rounds), 2),
        "rounds": len(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--only", choices=sorted(CASES))
    args = parser.parse_args()
    report: dict[str, Any] = {"agents": args.agents, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    for name, options in CASES.items():
        if args.only in (None, name):
            report[name] = asyncio.run(measure(args.agents, args.seconds, **options))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
