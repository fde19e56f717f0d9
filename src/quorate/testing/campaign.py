"""Many seeds over all cores, each batch in a process of its own with a hash seed of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from quorate.errors import ConfigError, QuorateError
from quorate.loader import load_service, load_settings
from quorate.testing.faults import FAULTS, Plan
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
    on_seeds: Callable[[int], None] = lambda count: None,
) -> Campaign:
    """Simulate every seed; failing ones (the first three) are shrunk.

    `rounds`: the first phase goes on until so many have ended. `twice`: every seed runs in a second process, with
    another hash seed, and must leave the same trace there. `on_seeds` hears of so many more that have run.
    """
    if unknown := sorted({*without} - {*FAULTS}):
        near = get_close_matches(unknown[0], FAULTS, 1)
        raise ConfigError(
            f"there is no kind of fault named {unknown[0]!r}",
            fix=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(FAULTS)}.",
        )
    subject = load_subject(folder)  # what is wrong with it is told here, not by a process
    began = time.monotonic()
    count = max(1, min(workers or os.cpu_count() or 1, len(seeds)))
    batches = [list(seeds[i::count]) for i in range(count)]
    requests = [
        {"folder": str(folder), "seeds": batch, "without": list(without), "rounds": rounds} for batch in batches
    ]
    lines = list(run_workers(requests, hash_seed, on_seeds))
    again = run_workers(requests, hash_seed + _OTHER_HASH_SEEDS, on_seeds) if twice else lines
    differing = [one["seed"] for one, other in zip(lines, again, strict=True) if one["trace"] != other["trace"]]
    broken = sorted((line for line in lines if line["violations"]), key=lambda line: int(line["seed"]))
    failures = [shrink(subject, folder, int(line["seed"]), without, rounds) for line in broken[:3]]
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


def run_workers(
    requests: Sequence[Mapping[str, Any]], hash_seed: int, on_lines: Callable[[int], None] = lambda count: None
) -> Iterator[dict[str, Any]]:
    """One process a request; their lines, request by request. `on_lines` hears of so many more as they come."""
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in requests]
        children, said = [], [bytearray() for _ in requests]
        for index, request in enumerate(requests):
            environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed + index)}
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            command = [sys.executable, "-P", "-m", "quorate.testing.campaign"]
            pipe = subprocess.PIPE
            child = stack.enter_context(
                subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors[index])
            )
            stack.callback(child.kill)
            children.append(child)
            assert child.stdin is not None  # noqa: S101  # piped
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
        _read_all([child.stdout for child in children], said, on_lines)
        for child, out, err in zip(children, said, errors, strict=True):
            if child.wait():
                err.seek(0)
                tail = err.read().decode(errors="replace").strip().splitlines()[-6:]
                raise QuorateError("a simulating process failed:\n" + "\n".join(tail))
            yield from (json.loads(line) for line in out.splitlines())


def _read_all(pipes: Sequence[IO[bytes] | None], said: Sequence[bytearray], on_lines: Callable[[int], None]) -> None:
    with selectors.DefaultSelector() as ready:
        for pipe, heard in zip(pipes, said, strict=True):
            assert pipe is not None  # noqa: S101  # piped
            ready.register(pipe, selectors.EVENT_READ, heard)
        while ready.get_map():
            for key, _ in ready.select():
                chunk = os.read(key.fd, 65_536)
                if not chunk:
                    ready.unregister(key.fileobj)
                key.data.extend(chunk)
                on_lines(chunk.count(b"\n"))


def _shown(folder: Path) -> Path:
    with contextlib.suppress(ValueError):
        return folder.resolve().relative_to(Path.cwd())
    return folder


if __name__ == "__main__":
    for found in worker(json.load(sys.stdin)):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
