"""The code of a simulated service changes while it runs: a quorum asks for the next version, and at an agreed block the
old code stops and the new one goes on, agent by agent, in the middle of whatever else goes wrong.

The next version has the same rules and keeps every field, so what must hold of the service holds across the change.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from quorate.abci import Plan, Target
from quorate.abci.machine import Replica
from quorate.errors import ConfigError
from quorate.fsm import Service, State, codec
from quorate.host.runner import Runner

__all__ = ["Rollout", "successor_of"]

T = TypeVar("T")


def successor_of(service: Service) -> Service:
    """The next version of `service`: the same rounds, rules and fields under another number."""

    def take_over(plain: Any, round: str) -> tuple[State, str]:
        return codec.decode(service.state, codec.encode(plain)), round

    return dataclasses.replace(service, version=service.version + 1, migrations={service.spec_hash: take_over})


class Rollout:
    """The change of the code in one run: what operators install, and what they ask for."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self.old, self.new = service, successor_of(service)
        self.plan: Plan | None = None
        """What a quorum is to agree on; None before anybody wants it."""
        self._rng = rng

    def want(self, height: int) -> None:
        """From now on operators ask for the new version, from a block a little above `height` on."""
        if self.plan is None:
            self.plan = Plan(Target.of(self.new), height + self._rng.randint(0, 20))

    def is_open(self, witness: Replica) -> bool:
        """True while it is wanted and not agreed on."""
        return self.plan is not None and witness.upgrades.due is None and witness.period.service is self.old

    def is_unfinished(self, witness: Replica) -> bool:
        """True while it is wanted and the old version runs."""
        return self.plan is not None and witness.period.service is self.old

    def start(self, make: Callable[[Service], T]) -> T:
        """Start an agent by the code that its operator has installed, and by the other where that refuses.

        Some install the new version too early, some too late: both learn it from the error, and nothing else happens.
        """
        if self.plan is None:
            return make(self.old)
        order = [self.old, self.new]
        self._rng.shuffle(order)
        try:
            return make(order[0])
        except ConfigError:
            return make(order[1])

    async def ask(self, runners: Iterable[Runner]) -> None:
        """These agents' operators ask; where a round ends meanwhile, or it counts already, that is all."""
        assert self.plan is not None, "nobody wants it"  # noqa: S101  (a slip of ours)
        for runner in runners:
            try:
                await runner.ask_upgrade(self.plan)
            except ConfigError:
                continue
