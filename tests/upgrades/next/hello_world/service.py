"""The next version of hello_world: its rounds are the old ones, and its state has one field more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quorate import Service, keep
from quorate.fsm import codec
from services.hello_world.service import Hello
from services.hello_world.service import service as first


@dataclass(frozen=True)
class Counted(Hello):
    since: int = keep(0)
    """The period in which this version began."""


def from_first(old: Mapping[str, Any], round: str) -> tuple[Counted, str]:
    """All that was agreed on, in the round that was going on."""
    state: Counted = codec.decode(Counted, codec.encode({**old, "since": old["period"]}))
    return state, round


service = Service("hello_world", state=Counted, config=first.config, start=first.start, otherwise=first.otherwise,
                  transitions=first.transitions, version=2, migrations={first.spec_hash: from_first})  # fmt: skip
