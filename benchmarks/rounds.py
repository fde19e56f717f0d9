"""How long a round takes: ours beside CometBFT's own kvstore with the same consensus settings, in one run.

`./quorate bench rounds [--json] [--table]`. Four validators each, all processes on this machine, data on a RAM disk.
The two are measured in turns, `repeats` times; a figure is the median over the turns, and a ratio is taken within a
turn, so that other work on the machine weighs on both sides.

- `quorate.p50_ms`, `p95_ms`, `rounds_per_s`: time between two settled rounds with instant acts, as an agent commits.
- `kvstore.block_p50_ms`: time between two blocks (block times) while transactions never run out.
- `quorate.wake_p50_ms`: in a sleeping chain, from the last needed payload being ready to the round settled (median of
  the agents, over all wakes of a turn).
- `quorate.one_dead_p95_ms`: as `p95_ms`, with one of four killed, once it is demoted.
- `idle_cpu_percent`: of one core, a node and its agent in a sleeping chain.
- `rss_growth_bytes_per_round`: of an agent and its node, over the second half of a chain of `rss_rounds` rounds;
  `./quorate bench endurance` is the long run of the same, and says more.
- `memory_network.rounds_per_s`: `quorate.testing.Network` with four agents.
- `table` (with `--table`): every case of `CASES`. `lat_*` is the time from the last needed payload being ready to the
  round settled; CPU is % of one core, for a node and for its agent.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from benchmarks.endurance import growth
from benchmarks.processes import Use, use_of
from quorate.fsm import quorum_of
from quorate.testing import Network
from tests.chain_of_agents.network import ChainOfAgents
from tests.chain_of_agents.services import counting

__all__ = ["measure", "render"]

_AGENTS = 4
_WARM_UP_ROUNDS = 30
_WAKES = 40
_ASLEEP_S = 0.25
_IDLE_S = 20.0
_DEMOTED_AFTER = 60
_MEMORY_ROUNDS = 3000
_TX_GAP_S = 0.003
_RATIOS = {"p50": "quorate.p50_ms", "wake": "quorate.wake_p50_ms", "one_dead": "quorate.one_dead_p95_ms"}
"""To a block of kvstore in the same turn. The aims: at most 1.4, 3 and 3."""

_DEFAULTS = {
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
"""What CometBFT's own config.toml says where ours differs."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    n: int = _AGENTS
    length: float = 1
    """How long it is measured, in lengths of a fast case."""
    warm_up: int = _WARM_UP_ROUNDS
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] | None = None
    is_one_dead: bool = False


_TX_ONLY = {"uses_extensions": False}
_MIDDLE = {"act_s": 0.02, "act_s_most": 0.15}
_SLOW = {"act_s": 0.5, "act_s_most": 3.0}
_FAST_CASE, _DEAD_CASE = Case("fast act"), Case("fast act, one agent dead and demoted", is_one_dead=True)
CASES = (
    _FAST_CASE,
    Case("fast act, transactions only", options=_TX_ONLY),
    Case("fast act, CometBFT's default settings", warm_up=3, length=3, settings=_DEFAULTS),
    Case("act 20-150 ms", options=_MIDDLE),
    Case("act 20-150 ms, transactions only", options=_MIDDLE | _TX_ONLY),
    Case("slow act 0.5-3 s", warm_up=2, length=6, options=_SLOW),
    Case("slow act 0.5-3 s, transactions only", warm_up=2, length=6, options=_SLOW | _TX_ONLY),
    _DEAD_CASE,
    Case("fast act", n=1),
    Case("slow act 0.5-3 s", n=1, warm_up=2, length=6, options=_SLOW),
    Case("fast act", n=7),
    Case("slow act 0.5-3 s", n=7, warm_up=2, length=6, options=_SLOW),
)


async def measure(seconds: float, repeats: int, rss_rounds: int, table: bool) -> dict[str, Any]:
    """All figures by name; needs QUORATE_COMETBFT."""
    load = os.getloadavg()[0]
    turns = []
    for _ in range(repeats):
        turns.append(await _fast(seconds) | await _kvstore(seconds) | await _wake() | await _one_dead(seconds))
    ratios = {
        f"ratio.{name}": round(statistics.median(turn[of] / turn["kvstore.block_p50_ms"] for turn in turns), 2)
        for name, of in _RATIOS.items()
    }
    figures: dict[str, Any] = {name: round(statistics.median(turn[name] for turn in turns), 1) for name in turns[0]}
    figures |= await _idle() | await _in_memory() | await _growth(rss_rounds)
    if table:
        figures["table"] = [await _row(case, seconds) for case in CASES]
    return figures | ratios | {"turns": repeats, "cores": os.cpu_count(), "load_before": round(load, 1)}


async def _fast(seconds: float) -> dict[str, float]:
    row = await _row(_FAST_CASE, seconds)
    return {
        "quorate.p50_ms": row["p50_ms"],
        "quorate.p95_ms": row["p95_ms"],
        "quorate.rounds_per_s": row["rounds_per_s"],
        "quorate.blocks_per_round": row["blocks_per_round"],
    }


async def _one_dead(seconds: float) -> dict[str, float]:
    row = await _row(_DEAD_CASE, seconds)
    return {"quorate.one_dead_p95_ms": row["p95_ms"], "quorate.one_dead_p50_ms": row["p50_ms"]}


async def _row(case: Case, seconds: float) -> dict[str, Any]:
    settings = None if case.settings is None else dict(case.settings)
    async with ChainOfAgents("counting", case.n, settings=settings, **case.options) as chain:
        chain.start()
        await chain.until_settled(case.warm_up, timeout_s=120)
        live = list(range(case.n))
        if case.is_one_dead:
            live.pop()
            await chain.kill(case.n - 1)
            await chain.until_settled(chain.settled(0) + _DEMOTED_AFTER, 0, timeout_s=120)
        first, before = chain.settled(0), use_of(chain, live)
        await asyncio.sleep(seconds * case.length)
        last, after = chain.settled(0), use_of(chain, live)
        settled = [event for event in chain.events(0, "settled") if first <= event["sequence"] <= last]
        if len(settled) < 2:
            raise RuntimeError(f"{case.name}: {len(settled)} rounds in {seconds * case.length} s; give it longer")
        gaps = _gaps([event["t"] for event in settled])
        waits = sorted(_lateness(chain, live, range(first + 1, last)))
        chain.assert_equal_digests(live)
    used = after - before
    return {
        "n": case.n,
        "case": case.name,
        "rounds": len(gaps),
        "p50_ms": round(_p50(gaps), 1),
        "p95_ms": round(_p95(gaps), 1),
        "rounds_per_s": round(1000 / statistics.mean(gaps), 1),
        "blocks_per_round": round((settled[-1]["height"] - settled[0]["height"]) / len(gaps), 2),
        "lat_p50_ms": round(_p50(waits), 1),
        "lat_p95_ms": round(_p95(waits), 1),
        "node_cpu_percent": round(used.node_cpu_percent, 1),
        "agent_cpu_percent": round(used.agent_cpu_percent, 1),
    }


async def _wake() -> dict[str, float]:
    async with ChainOfAgents("on_demand", _AGENTS) as chain:
        chain.start()
        chain.allow(1)
        await chain.until_settled(1, timeout_s=90)
        rounds = range(2, 2 + _WAKES)
        for sequence in rounds:
            await asyncio.sleep(_ASLEEP_S)
            chain.allow(sequence)
            await chain.until_settled(sequence)
        took = sorted(_lateness(chain, range(_AGENTS), rounds))
    return {"quorate.wake_p50_ms": _p50(took), "quorate.wake_p95_ms": _p95(took)}


def _lateness(chain: ChainOfAgents, live: Sequence[int], rounds: range) -> list[float]:
    """Milliseconds from the payload that made the quorum to the round settled (median of the agents), for each round.

    A round whose quorum was there before it opened is left out: its payloads waited for the block, not it for them.
    """
    ready: dict[int, list[float]] = {}
    settled: dict[int, list[float]] = {}
    for index in live:
        first = {event["sequence"]: event["t"] for event in reversed(chain.events(index, "ready"))}
        for sequence, t in first.items():
            ready.setdefault(sequence, []).append(t)
        for event in chain.events(index, "settled"):
            settled.setdefault(event["sequence"], []).append(event["t"])
    quorum = quorum_of(chain.n)
    return [
        1000 * (statistics.median(settled[at]) - sorted(ready[at])[quorum - 1])
        for at in rounds
        if len(ready.get(at, [])) >= quorum and at in settled
    ]


async def _idle() -> dict[str, float]:
    async with ChainOfAgents("deadline", _AGENTS) as chain:
        chain.start()
        await chain.until_settled(1, timeout_s=90)
        await asyncio.sleep(5)
        before = use_of(chain, range(_AGENTS))
        await asyncio.sleep(_IDLE_S)
        used: Use = use_of(chain, range(_AGENTS)) - before
    return {
        "idle_cpu_percent": round(used.node_cpu_percent + used.agent_cpu_percent, 2),
        "idle_node_cpu_percent": round(used.node_cpu_percent, 2),
        "idle_agent_cpu_percent": round(used.agent_cpu_percent, 2),
    }


async def _growth(rounds: int) -> dict[str, float]:
    async with ChainOfAgents("counting", _AGENTS) as chain:
        chain.start()
        grown = await growth(chain, rounds)
    return {
        "rss_growth_bytes_per_round": round(grown["agent"] + grown["node"]),
        "rss_agent_growth_bytes_per_round": round(grown["agent"]),
        "rss_node_growth_bytes_per_round": round(grown["node"]),
        "rss_rounds": rounds,
    }


async def _in_memory() -> dict[str, float]:
    async with Network(counting, agents=_AGENTS, config=SimpleNamespace(act_s=0)) as net:
        start = time.monotonic()
        await net.run_until(when=lambda net: len(net.rounds) >= _MEMORY_ROUNDS, timeout_s=10**6)
        return {"memory_network.rounds_per_s": round(_MEMORY_ROUNDS / (time.monotonic() - start))}


# ---- CometBFT's own application


async def _kvstore(seconds: float) -> dict[str, float]:
    """Homes, keys, genesis and config.toml are made as for ours; only the application is another."""
    async with (
        ChainOfAgents("counting", _AGENTS) as chain,
        _kvstore_nodes(chain) as socket,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
    ):
        sending = asyncio.create_task(_keep_sending(session))
        try:
            await _height_above(session, _WARM_UP_ROUNDS)
            first = await _height(session)
            await asyncio.sleep(seconds)
            last = await _height(session)
            gaps = _gaps(await _block_times(session, first, last))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return {"kvstore.block_p50_ms": _p50(gaps), "kvstore.block_p95_ms": _p95(gaps)}


@asynccontextmanager
async def _kvstore_nodes(chain: ChainOfAgents) -> AsyncIterator[Path]:
    """Running nodes in the homes of `chain`; yields the RPC socket of the first."""
    started = []
    try:
        for index, home in enumerate(chain.homes):
            rpc = f"unix://{chain.folder / f'k{index}.sock'}"
            command = ["start", "--home", str(home), "--proxy_app", "kvstore", "--rpc.laddr", rpc]
            with (home / "node.log").open("ab") as log:
                started.append(
                    await asyncio.create_subprocess_exec(
                        os.environ["QUORATE_COMETBFT"], *command, stdout=log, stderr=log
                    )
                )
        yield chain.folder / "k0.sock"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            await process.wait()


async def _keep_sending(session: aiohttp.ClientSession) -> None:
    for number in itertools.count():
        try:
            await _ask(session, "broadcast_tx_async", tx=f'"k{number % 100}=v{number}"')
        except aiohttp.ClientError:  # it has not started yet
            await asyncio.sleep(0.1)
        await asyncio.sleep(_TX_GAP_S)


async def _height_above(session: aiohttp.ClientSession, height: int) -> None:
    async with asyncio.timeout(90):
        while True:
            try:
                if await _height(session) > height:
                    return
            except (aiohttp.ClientError, KeyError):  # it has not started yet
                pass
            await asyncio.sleep(0.1)


async def _height(session: aiohttp.ClientSession) -> int:
    return int((await _ask(session, "status"))["result"]["sync_info"]["latest_block_height"])


async def _block_times(session: aiohttp.ClientSession, first: int, last: int) -> list[float]:
    times = []
    for at in range(first, last + 1, 20):  # CometBFT gives at most 20 headers at once
        answer = await _ask(session, "blockchain", minHeight=f'"{at}"', maxHeight=f'"{min(last, at + 19)}"')
        times += [_seconds(meta["header"]["time"]) for meta in reversed(answer["result"]["block_metas"])]
    return times


def _seconds(text: str) -> float:
    """RFC 3339 with up to nine decimals; within one day, which is enough for gaps."""
    hours, minutes, seconds = text.rstrip("Z").partition("T")[2].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


async def _ask(session: aiohttp.ClientSession, method: str, **params: str) -> Any:
    async with session.get(f"http://node/{method}", params=params) as response:
        return await response.json(content_type=None)


# ---- what was seen


def _gaps(times: Sequence[float]) -> list[float]:
    """Milliseconds between one and the next, sorted."""
    return sorted(1000 * (after - before) for before, after in itertools.pairwise(times))


def _p50(sorted_values: Sequence[float]) -> float:
    return statistics.median(sorted_values)


def _p95(sorted_values: Sequence[float]) -> float:
    return sorted_values[int(0.95 * len(sorted_values))]


def render(figures: Mapping[str, Any]) -> str:
    """The figures as tables for people."""
    lines = [f"{name:<34} {value:>10}" for name, value in figures.items() if name != "table"]
    if "table" in figures:
        columns = [name for name in figures["table"][0] if name != "case"]
        lines.append("\n" + " ".join(f"{name.removesuffix('_percent'):>16}" for name in columns) + "  case")
        for row in figures["table"]:
            lines.append(" ".join(f"{row[name]:>16}" for name in columns) + f"  {row['case']}")
    return "\n".join(lines)
