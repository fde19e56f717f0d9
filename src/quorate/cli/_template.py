"""The files of a new service, as `./quorate new` writes them: small enough to be read whole before it is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

__all__ = ["agent_files", "service_files"]


def service_files(name: str) -> Mapping[PurePosixPath, str]:
    """What lies in services/NAME (beside the specification, which is derived)."""
    words = {"name": name, "camel": "".join(word.capitalize() for word in name.split("_"))}
    files = {
        "__init__.py": "",
        "service.py": _SERVICE,
        "service.yaml": _SETTINGS,
        "test_service.py": _TEST,
        "README.md": _README,
    }
    return {PurePosixPath(file): _filled(text, words) for file, text in files.items()}


def agent_files(name: str) -> Mapping[PurePosixPath, str]:
    """What lies in agents/NAME: the open-aea package of one agent."""
    return {PurePosixPath("aea-config.yaml"): _filled(_AGENT, {"name": name})}


def _filled(text: str, words: Mapping[str, str]) -> str:
    """`text` with each <word> replaced; braces are left alone, for Python has its own use for them."""
    for word, value in words.items():
        text = text.replace(f"<{word}>", value)
    return text


_SERVICE = '''\
"""<name>: in each period the agents agree on a new total, and rest."""

from dataclasses import dataclass

from quorate import ROUND_TIMEOUT, Context, Service, State, agree, keep, same
from quorate.rounds import pause, register


@dataclass(frozen=True)
class Config:
    """What an operator may set in service.yaml."""

    step: int = 1
    pause_s: float = 2


@dataclass(frozen=True)
class <camel>(State):
    """What the agents agree on. A field made by `keep` crosses into the next period."""

    total: int = keep(0)


@agree(same("total"))
async def count(ctx: Context, state: <camel>) -> int:
    """What one agent does: here it adds, elsewhere it reads a chain or asks a model."""
    return state.total + int(ctx.config.step)


service = Service("<name>", state=<camel>, config=Config, start=register, otherwise=pause, transitions={
    (register, "DONE"): count, (register, ROUND_TIMEOUT): register,
    (count, "DONE"): pause,
    (pause, "DONE"): count,
})  # fmt: skip
'''

_SETTINGS = """\
# What an operator may set. The machine itself is in service.py.
description: In each period the agents agree on a new total.
agents: 4
config:
  step: 1
  pause_s: 2
"""

_TEST = '''\
"""<name>, in memory and under a virtual clock: a test takes milliseconds."""

from __future__ import annotations

from pathlib import Path

from quorate.loader import load_service
from quorate.testing import Network

SERVICE = load_service(Path(__file__).parent)


async def test_each_period_adds_a_step() -> None:
    async with Network(SERVICE) as net:
        await net.run_until(period=3)
        assert net.state.total == 3


async def test_one_dead_agent_of_four_stops_nothing() -> None:
    async with Network(SERVICE, seed=1) as net:
        await net.run_until(round="count")
        net.crash(net.agents[0])
        await net.run_until(period=2)
        assert not net.violations


def test_its_specification_on_disk_is_that_of_the_code() -> None:
    assert (Path(__file__).parent / "fsm_specification.yaml").read_text() == SERVICE.spec_yaml()
'''

_README = """\
# <name>

In each period the agents agree on a new total.

```
./quorate test services/<name>      # in memory, in milliseconds
./quorate run services/<name>       # four agents, four validators
./quorate graph services/<name>     # its rounds, as a diagram
```

After a change of the rounds: `./quorate spec services/<name>` writes fsm_specification.yaml anew.
"""

_AGENT = """\
agent_name: <name>
author: quorate
version: 0.1.0
license: Apache-2.0
description: One member of the <name> service.
aea_version: '>=2.2.0, <3.0.0'
fingerprint: {}
fingerprint_ignore_patterns: []
connections: []
contracts: []
protocols: []
skills: []
default_connection: null
default_ledger: ethereum
required_ledgers:
- ethereum
# The keystore is handed in by the host (one an agent, encrypted): no key path is ever committed.
private_key_paths: {}
connection_private_key_paths: {}
# Nothing here ticks: rounds are tasks on the agent's loop, woken by the chain.
period: 3600
loop_mode: async
runtime_mode: async
decision_maker_handler:
  dotted_path: quorate.host.decision_maker:QuorateDecisionMaker
  file_path: null
  config: {}
dependencies: {}
"""
