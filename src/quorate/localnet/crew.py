"""Processes of one kind (agents, operators), by name: started, awaited, killed and brought back one by one.

Each tells in an event file of its own when it is `ready`. One that ends by itself after that is told of as `down` and
started again, as on a machine of its own by its service manager: the others go on without it if they are enough. What
is never ready, and the last one that runs, end the run: no start would help there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from quorate.errors import SetupError
from quorate.events import EventWriter, Mark, has_occurred, last_events, occurred
from quorate.localnet.processes import Child, Supervisor

__all__ = ["Command", "Crew"]

_PAUSE_S = 2.0
"""Before one is started again: long enough for all that have one fault in common to end. Doubled each time in a row."""
_LONGEST_PAUSE_S = 60.0
_LAST = 16 * 1024  # bytes of events among which is the parting


@dataclass(frozen=True)
class Command:
    """How one process is started; its secrets are in `env`, never in `argv`."""

    argv: tuple[str | Path, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    events: Path
    parting: str = ""
    """The event after which it ends for good, as when an agent has left its service."""
    again_after: int | None = None
    """The exit code with which a process that was ready asks to be started again: its code has changed."""


@dataclass
class Crew:
    """The processes, by name; none runs before `start`."""

    supervisor: Supervisor
    commands: Mapping[str, Command]
    _children: dict[str, Child] = field(default_factory=dict)
    _since: dict[str, Mark] = field(default_factory=dict)
    _first: dict[str, Mark] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)

    def child(self, name: str) -> Child:
        """The process of a member that was started."""
        return self._children[name]

    async def start(self, *names: str) -> None:
        """Start these (all, if none is named); returns before they are ready."""
        for name in names or tuple(self.commands):
            command = self.commands[name]
            self._since[name] = Mark.end_of(command.events)
            self._first.setdefault(name, self._since[name])
            self._children[name] = await self.supervisor.spawn(
                name, command.argv, env=command.env, cwd=command.cwd, on_end=partial(self._ended, name)
            )

    async def _ended(self, name: str, child: Child) -> bool:
        """See to one that has ended by itself; False where that is the end of the run."""
        command = self.commands[name]
        was_ready = has_occurred(command.events, "ready", since=self._since[name])
        if child.returncode == 0 and any(one.kind == command.parting for one in last_events(command.events, _LAST)):
            return True
        if was_ready and child.returncode == command.again_after:
            await self.start(name)
            return True
        if not has_occurred(command.events, "ready", since=self._first[name]):
            return False
        if not any(other.is_running for other in self._children.values()):
            return False
        await child.sweep()
        self._ends[name] = 1 if was_ready else self._ends.get(name, 0) + 1
        pause_s = min(_PAUSE_S * 2 ** (self._ends[name] - 1), _LONGEST_PAUSE_S)
        self._tell_down(name, how=child.how, again_s=pause_s)
        if await self.supervisor.pause(pause_s) and self._children[name] is child and not child.is_ending:
            await self.start(name)
        return True

    def _tell_down(self, name: str, **fields: object) -> None:
        writer = EventWriter(self.commands[name].events, name)
        writer.emit("down", **fields)
        writer.close()

    async def ready(self, *names: str, within_s: float) -> None:
        """Wait until these (all, if none is named) are ready; raises `SetupError` for one that is not in time."""
        deadline = asyncio.get_running_loop().time() + within_s
        for name in names or tuple(self.commands):
            try:
                async with asyncio.timeout_at(deadline):
                    await occurred(self.commands[name].events, "ready", since=self._since[name])
            except TimeoutError:
                raise _not_ready(self._children[name], within_s) from None

    async def kill(self, *names: str) -> None:
        """End these and all that they have started at once, as a power cut would."""
        for name in names:
            await self._children[name].kill()
            self._tell_down(name)

    async def stop(self) -> None:
        """End all of them in order, at the same time."""
        await asyncio.gather(*(child.stop() for child in self._children.values()))


def _not_ready(child: Child, within_s: float) -> SetupError:
    lines = "".join(f"\n    {line}" for line in child.last_lines()) or " (none)"
    return SetupError(
        f"{child.name} is not ready after {within_s:.0f} s; its last lines:{lines}", fix=f"its output is in {child.log}"
    )
