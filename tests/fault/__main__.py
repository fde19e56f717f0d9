"""Faults of real nodes for as long as one likes: `python -m tests.fault alone|pairs|crashes|soak` (see `--help`).

Needs QUORATE_COMETBFT; `QUORATE_FAULTS="soak --minutes 30" ./quorate test tests/fault/test_long_runs.py -s` gives it.
Ends with code 1 where something that must hold did not, or where
recovery took longer than the bars. The seed that is printed repeats the choices (which fault, whom, where bytes flip),
not the interleaving of the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chain_of_agents.watched import BLOCK_POINTS, NODE_POINTS, ROUND_POINTS, SNAPSHOT_POINTS
from tests.fault.chain import Chain
from tests.fault.crashes import NODE_CRASHES, crash_at, crash_node_at
from tests.fault.links import Links
from tests.fault.namespaces import Namespaces
from tests.fault.perturbations import (
    ALL,
    TWELVE,
    ClockSkew,
    DiskFull,
    DoubleSigner,
    Mute,
    Reset,
    SlowLink,
    can_mount,
)
from tests.fault.settling import DeadRpc, SettlingChain, StartWithoutEvm, settling_chain
from tests.fault.skewed_node import build
from tests.fault.trial import perturb

__all__ = ["main"]

MEDIAN_S, P99_S = 5.0, 20.0
"""The bars for recovery."""
ON_EVM = {kind.name: kind for kind in (DeadRpc, StartWithoutEvm)}
KINDS = {**ALL, **ON_EVM}
BY_PROXY = {Mute.name, Reset.name, SlowLink.name, DoubleSigner.name}
"""What only links by proxies can do."""


class Table:
    """Seconds to recover, by what was done; and what went wrong."""

    def __init__(self) -> None:
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.violations: list[str] = []

    def add(self, name: str, seconds: float) -> None:
        self.took[name].append(seconds)
        print(f"{time.strftime('%H:%M:%S')} {name}: level after {seconds:.1f} s", file=sys.stderr, flush=True)

    def failed(self, name: str, error: BaseException) -> None:
        self.violations.append(f"{name}: {error}")
        print(f"{name} FAILED: {error}", file=sys.stderr, flush=True)

    def summary(self) -> dict[str, Any]:
        every = [seconds for took in self.took.values() for seconds in took]
        return {
            "trials": len(every),
            "violations": self.violations,
            "median_s": _quantile(every, 0.5),
            "p99_s": _quantile(every, 0.99),
            "each": {
                name: {"n": len(took), "median_s": _quantile(took, 0.5), "max_s": max(took)}
                for name, took in sorted(self.took.items())
            },
        }

    def show(self, seconds: float) -> None:
        found = self.summary()
        print("| what | times | recovery: median s | longest s |\n| --- | --- | --- | --- |")
        for name, one in found["each"].items():
            print(f"| {name} | {one['n']} | {one['median_s']:.1f} | {one['max_s']:.1f} |")
        print(
            f"| all | {found['trials']} | {found['median_s']:.1f} | p99 {found['p99_s']:.1f} |\n"
            f"{len(self.violations)} violations in {seconds:.0f} s"
        )
        for violation in self.violations:
            print(f"- {violation}")

    def is_good(self) -> bool:
        found = self.summary()
        return bool(not self.violations and found["median_s"] <= MEDIAN_S and found["p99_s"] <= P99_S)


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; nan where there are none."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else float("nan")


async def _alone(options: argparse.Namespace, table: Table) -> None:
    """Each perturbation, so many times, each time on another agent."""
    names = options.only or _possible(options)
    await _trials([(name,) for _ in range(options.repeat) for name in names], options, table)


async def _pairs(options: argparse.Namespace, table: Table) -> None:
    """Each pair of the twelve, on two agents: below a quorum with four agents, so that all depends on both.

    With `--effects` 66; without an EVM its RPC cannot be dead, and 55 are left.
    """
    twelve = [name for name in _possible(options) if name in TWELVE or name == DeadRpc.name]
    pairs: list[tuple[str, ...]] = list(itertools.combinations(twelve, 2))
    random.Random(options.seed).shuffle(pairs)
    end = options.skip + options.count if options.count else None
    await _trials(pairs[options.skip : end], options, table)


async def _trials(trials: Iterable[tuple[str, ...]], options: argparse.Namespace, table: Table) -> None:
    """One chain for as long as all is well; a new one after a failure."""
    left = list(trials)
    while left:
        async with _chain(options) as chain:
            while left and await _trial(chain, left.pop(0), options, table):
                pass


async def _trial(chain: Chain, names: tuple[str, ...], options: argparse.Namespace, table: Table) -> bool:
    title = " + ".join(names)
    rng = random.Random(f"{options.seed} {title} {len(table.took[title])}")
    victims = rng.sample(range(chain.n), len(names))
    try:
        faults = [(KINDS[name](rng), victim) for name, victim in zip(names, victims, strict=True)]
        result = await perturb(chain, faults)
        if isinstance(chain, SettlingChain):
            await chain.pays_on()
    except (AssertionError, OSError, TimeoutError) as error:
        table.failed(f"{title} on {victims}", error)
        return False
    table.add(title, result.recovery_s)
    return True


async def _crashes(options: argparse.Namespace, table: Table) -> None:
    """Every crash point of the application and of CometBFT."""
    async with Chain(snapshot_every=10, snapshots=3) as chain:
        points = (*BLOCK_POINTS, *SNAPSHOT_POINTS, *NODE_POINTS, *ROUND_POINTS)
        for point, seconds in (await crash_at(chain, 3, *points)).items():
            table.add(f"killed at {point}", seconds)
    async with Chain("on_demand") as asleep:
        for index in range(NODE_CRASHES):
            table.add(f"CometBFT at {index}", await crash_node_at(asleep, 2, index, 3 * index + 2))


async def _soak(options: argparse.Namespace, table: Table) -> None:
    """Random perturbations, one or two at a time, with a pause between them that is random too."""
    rng = random.Random(options.seed)
    names, end = _possible(options), time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        async with _chain(options) as chain:
            while time.monotonic() < end:
                chosen = tuple(rng.sample(names, rng.choice((1, 1, 1, 2))))
                await chain.hold(rng.uniform(0, 5))
                if not await _trial(chain, chosen, options, table):
                    break
            effects = f", {chain.paid} effects" if isinstance(chain, SettlingChain) else ""
            judge = chain.judge
            print(f"{judge.last} blocks, {judge.rounds} rounds, {judge.compared} comparisons{effects}", file=sys.stderr)


@asynccontextmanager
async def _chain(options: argparse.Namespace) -> AsyncIterator[Chain]:
    """Agents that count their rounds, real ones in open-aea, or real ones with a Safe on an EVM."""
    if options.effects:
        with tempfile.TemporaryDirectory() as folder:
            async with settling_chain(Path(folder)) as settling:
                yield settling
    elif options.hosted:
        async with Chain("hello_world", options.agents, hosted={"pause_s": 0.2}) as hosted:
            yield hosted
    else:
        network = Namespaces if options.namespaces else Links
        async with Chain("counting", options.agents, network=network) as counting:
            yield counting


def _possible(options: argparse.Namespace) -> list[str]:
    without = set() if can_mount() else {DiskFull.name}
    if not options.effects:
        without |= ON_EVM.keys()
    if options.namespaces:
        without |= BY_PROXY
    return [name for name in KINDS if name not in without]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    parser.add_argument("what", choices=["alone", "pairs", "crashes", "soak"])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--hosted", action="store_true", help="real agents in open-aea (hello_world)")
    parser.add_argument(
        "--effects", action="store_true", help="real agents, four, with a Safe on anvil (QUORATE_ANVIL)"
    )
    parser.add_argument(
        "--namespaces", action="store_true", help="packets are really lost: a network namespace each (root)"
    )
    parser.add_argument("--repeat", type=int, default=1, help="alone: how often each")
    parser.add_argument("--only", nargs="*", choices=sorted(KINDS), help="alone: only these")
    parser.add_argument("--count", type=int, default=0, help="pairs: how many, drawn at random; 0: all")
    parser.add_argument("--skip", type=int, default=0, help="pairs: leave out so many at first (go on with a seed)")
    parser.add_argument("--minutes", type=float, default=30, help="soak: how long")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--skew-nodes", action="store_true", help="build a CometBFT whose own clock can be set off (Go)"
    )
    parser.add_argument("--no-bars", action="store_true", help="a slow recovery is no failure (a shared machine)")
    options = parser.parse_args(arguments)
    run = {"alone": _alone, "pairs": _pairs, "crashes": _crashes, "soak": _soak}[options.what]
    print(f"to repeat: python -m tests.fault {' '.join(arguments)} --seed {options.seed}", file=sys.stderr)
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        if options.skew_nodes:
            ClockSkew.skewed_node = Path(folder) / "cometbft-skewed"
            build(ClockSkew.skewed_node)
        start = time.monotonic()
        asyncio.run(run(options, table))
    if options.json:
        print(json.dumps(table.summary()))
    else:
        table.show(time.monotonic() - start)
    return 0 if table.is_good() or (options.no_bars and not table.violations) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
