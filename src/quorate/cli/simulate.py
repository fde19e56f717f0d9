"""`./quorate simulate`: a service under faults that a seed draws, and what the simulator itself catches."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from quorate.errors import ConfigError
from quorate.localnet.tools import Site

__all__ = ["simulate"]

_SHARE = 0.95  # of the planted bugs: with less the simulator is too blind to be believed


@click.command()
@click.argument("service", type=click.Path(path_type=Path), metavar="[SERVICE]", required=False)
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(1), help="How many seeds.")
@click.option("--seed", default=0, show_default=True, help="The first one.")
@click.option("--without", multiple=True, help="Leave a kind of fault out (repeatable): see docs/reliability.md.")
@click.option("--workers", type=click.IntRange(1), help="Processes; as many as cores if not told.")
@click.option("--rounds", default=0, type=click.IntRange(0), help="Faults go on until so many rounds have ended.")
@click.option("--twice", is_flag=True, help="Run each seed in a second process as well; both must do the same.")
@click.option("--planted", is_flag=True, help="Plant known bugs into the code instead, and count how many are caught.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def simulate(
    service: Path | None,
    seeds: int,
    seed: int,
    without: tuple[str, ...],
    workers: int | None,
    rounds: int,
    twice: bool,
    planted: bool,
    as_json: bool,
) -> None:
    """Run SERVICE (a folder such as services/hello_world) under faults: one virtual network a seed.

    All agents are real (application, runner, signing boundary); network, disks, clocks, the engine and the world
    outside are simulated. A failing seed is made small and printed with the command that replays it.
    """
    if planted:
        _plant(workers, as_json)
        return
    if service is None:
        raise ConfigError("simulate needs a SERVICE", fix="For example: ./quorate simulate services/hello_world")
    from quorate.testing.campaign import run_campaign

    found = run_campaign(
        service,
        range(seed, seed + seeds),
        workers=workers,
        without=without,
        rounds=rounds,
        twice=twice,
        on_seeds=_Progress(seeds * (1 + twice)),
    )
    for failure in found.failures:
        click.echo(f"seed {failure.seed} broke: {', '.join(failure.invariants)}", err=as_json)
        for line in failure.story:
            click.echo(f"  {line}", err=as_json)
        click.echo(f"  replay: {failure.command}", err=as_json)
    if found.differing:
        click.echo(f"seeds that did something else in a second process: {list(found.differing)}", err=as_json)
    if as_json:
        click.echo(json.dumps(asdict(found), sort_keys=True))
    else:
        click.echo(
            f"{found.seeds} seeds, {found.violations} with violations; {found.periods} periods, {found.rounds} rounds, "
            f"{found.blocks} blocks, {sum(found.checks.values())} checks of {len(found.checks)} invariants "
            f"in {found.seconds} s"
        )
    if found.violations or found.differing:
        raise SystemExit(1)


class _Progress:
    """Says on stderr how far it is: each second in a terminal, each half minute in a log."""

    def __init__(self, total: int) -> None:
        self._done, self._total, self._is_live = 0, total, sys.stderr.isatty()
        self._began = self._told = time.monotonic()

    def __call__(self, count: int) -> None:
        """So many more have run."""
        self._done += count
        now = time.monotonic()
        is_last = self._done == self._total
        if now - self._told < (1 if self._is_live else 30) and not (is_last and self._told > self._began):
            return
        self._told = now
        left_s = (now - self._began) * (self._total - self._done) / max(1, self._done)
        text = f"{self._done} of {self._total} seeds" + (f", {left_s:.0f} s left" if not is_last else "")
        end = "\n" if is_last or not self._is_live else ""
        click.echo(f"\r\033[K{text}{end}" if self._is_live else text, err=True, nl=not self._is_live)


def _plant(workers: int | None, as_json: bool) -> None:
    from quorate.testing.planted import run_planted

    os.chdir(Site.here().root)  # some bugs are hunted in the checkout's own services
    found = run_planted(workers=workers)
    for name, requirement, seeds, invariant in found.bugs:
        caught = f"seed {seeds:3d}  {invariant}" if seeds else "NOT CAUGHT"
        click.echo(f"{requirement or '-':>5}  {name:<60} {caught}", err=as_json)
    for seed, is_abroad, seen in found.control:
        if seen:
            click.echo(f"FALSE: seed {seed} shows {seen} without any bug{', in the delegate' * is_abroad}", err=as_json)
    if as_json:
        click.echo(json.dumps(found.figures(), sort_keys=True))
    else:
        click.echo(
            f"{found.caught} of {found.planted} planted bugs caught; median seeds {found.median_seeds}; "
            f"{found.false_catches} false catches in {len(found.control)} seeds without a bug"
        )
    if found.false_catches or found.caught < _SHARE * found.planted:
        raise SystemExit(1)
