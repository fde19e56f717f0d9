"""Many seeds over all cores, each batch in a process of its own with a hash seed of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import QuorateError
from quorate.loader import load_service, load_settings
from quorate.testing.faults import Plan
from quorate.testing.simulation import Report, Subject, simulate
from quorate.testing.world import World

__all__ = ["Campaign", "Failure", "load_subject", "run_campaign", "run_workers", "shrink", "worker"]

_OTHER_HASH_SEEDS = 1000


@dataclass(frozen=True)
class Failure:
    """A seed that broke something, made as small as it goes."""

    seed: int
    invariants: tuple[str, ...]
    without: tuple[str, ...]
    """Kinds of fault that the failure does not need."""
    agents: int
    story: tuple[str, ...]
    command: str
    """Replays it."""


@dataclass(frozen=True)
class Campaign:
    """What many seeds showed."""

    seeds: int
    violations: int
    periods: int
    rounds: int
    blocks: int
    faults: Mapping[str, int]
    """How many seeds drew each kind."""
    checks: Mapping[str, int]
    """How often each invariant was looked at."""
    failures: tuple[Failure, ...]
    differing: tuple[int, ...]
    """Seeds that left another trace in another process (`twice`): something depends on more than seed and code."""
    seconds: float


def load_subject(folder: Path) -> Subject:
    """The service in `folder`, with the World of its simulation.py where it has one."""
    service = load_service(folder)
    file = folder / "simulation.py"
    if not file.is_file():
        return Subject(service, load_settings(service, folder).config)
    name = f"services.{folder.resolve().name}.simulation"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise QuorateError(f"Python cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    spec.loader.exec_module(module)
    world: type[World] = module.SimulatedWorld
    return Subject(service, module.config(), world, getattr(module, "AGENTS", None))


def run_campaign(
    folder: Path,
    seeds: Sequence[int],
    *,
    workers: int | None = None,
    without: Sequence[str] = (),
    rounds: int = 0,
    twice: bool = False,
    hash_seed: int = 1,
) -> Campaign:
    """Simulate every seed; failing ones (the first three) are shrunk.

    `rounds`: the first phase goes on until so many have ended. `twice`: every seed runs in a second process, with
    another hash seed, and must leave the same trace there.
    """
    began = time.monotonic()
    count = max(1, min(workers or os.cpu_count() or 1, len(seeds)))
    batches = [list(seeds[i::count]) for i in range(count)]
    requests = [
        {"folder": str(folder), "seeds": batch, "without": list(without), "rounds": rounds} for batch in batches
    ]
    lines = list(run_workers(requests, hash_seed))
    again = run_workers(requests, hash_seed + _OTHER_HASH_SEEDS) if twice else lines
    differing = [one["seed"] for one, other in zip(lines, again, strict=True) if one["trace"] != other["trace"]]
    broken = sorted((line for line in lines if line["violations"]), key=lambda line: int(line["seed"]))
    subject = load_subject(folder) if broken else None
    failures = [shrink(subject, folder, int(line["seed"]), without, rounds) for line in broken[:3]] if subject else []
    checks: Counter[str] = Counter()
    for line in lines:
        checks.update(line["checks"])
    return Campaign(
        seeds=len(lines),
        violations=len(broken),
        periods=sum(line["periods"] for line in lines),
        rounds=sum(line["rounds"] for line in lines),
        blocks=sum(line["blocks"] for line in lines),
        faults=dict(sorted(Counter(fault for line in lines for fault in line["faults"]).items())),
        checks=dict(sorted(checks.items())),
        failures=tuple(failures),
        differing=tuple(sorted(differing)),
        seconds=round(time.monotonic() - began, 1),
    )


def shrink(subject: Subject, folder: Path, seed: int, without: Sequence[str] = (), rounds: int = 0) -> Failure:
    """Leave out one kind of fault after the other, as long as an invariant that broke still breaks."""
    plan = plan_of(subject, seed, without, rounds)
    report = simulate(subject, plan)
    first = {one.invariant for one in report.violations}
    for fault in plan.faults:
        smaller = simulate(subject, plan.without(fault))
        if first & {one.invariant for one in smaller.violations}:
            plan, report = plan.without(fault), smaller
    left_out = [one for one in plan_of(subject, seed).faults if one not in plan.faults]
    extra = "".join(f" --without '{fault}'" for fault in left_out) + (f" --rounds {rounds}" if rounds else "")
    return Failure(
        seed=seed,
        invariants=tuple(dict.fromkeys(one.invariant for one in report.violations)),
        without=tuple(left_out),
        agents=plan.agents,
        story=report.story,
        command=f"./quorate simulate {_shown(folder)} --seed {seed} --seeds 1{extra}",
    )


def plan_of(subject: Subject, seed: int, without: Sequence[str] = (), rounds: int = 0) -> Plan:
    """What a seed draws for this service."""
    plan = Plan.draw(seed, agents=subject.agents, has_world=bool(subject.make_world.faults))
    plan = dataclasses.replace(plan, rounds=rounds)
    for fault in without:
        plan = plan.without(fault)
    return plan


def worker(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What one process does: a line for each seed."""
    if "planted" in request:
        from quorate.testing.planted import hunt  # its mutants import everything that they break

        yield from (hunt(name, request["most"]) for name in request["planted"])
        return
    if "control" in request:
        from quorate.testing.planted import look

        for seed, is_abroad in request["control"]:
            yield {"seed": seed, "is_abroad": is_abroad, "seen": look(seed, is_abroad=is_abroad)}
        return
    subject = load_subject(Path(request["folder"]))
    gc.freeze()  # what is imported stays; and a seed makes little garbage that needs looking for
    gc.set_threshold(100_000, 50, 100)
    for seed in request["seeds"]:
        yield _line(simulate(subject, plan_of(subject, seed, request.get("without", ()), request.get("rounds", 0))))


def _line(report: Report) -> dict[str, Any]:
    return {
        "seed": report.plan.seed,
        "faults": report.plan.faults,
        "violations": [[one.invariant, one.message] for one in report.violations],
        "trace": report.trace,
        "periods": report.periods,
        "rounds": report.rounds,
        "blocks": report.blocks,
        "checks": report.checks,
    }


def run_workers(requests: Sequence[Mapping[str, Any]], hash_seed: int) -> Iterator[dict[str, Any]]:
    """One process a request; their lines, request by request."""
    with contextlib.ExitStack() as stack:
        children = []
        for index, request in enumerate(requests):
            environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed + index)}
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            command = [sys.executable, "-P", "-m", "quorate.testing.campaign"]
            child = stack.enter_context(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
            stack.callback(child.kill)
            children.append(child)
            assert child.stdin is not None  # noqa: S101  # piped
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            child.stdin = None
        for child in children:
            out, err = child.communicate()
            if child.returncode:
                tail = err.decode(errors="replace").strip().splitlines()[-6:]
                raise QuorateError("a simulating process failed:\n" + "\n".join(tail))
            yield from (json.loads(line) for line in out.splitlines())


def _shown(folder: Path) -> Path:
    with contextlib.suppress(ValueError):
        return folder.resolve().relative_to(Path.cwd())
    return folder


if __name__ == "__main__":
    for found in worker(json.load(sys.stdin)):
        sys.stdout.write(json.dumps(found) + "\n")
