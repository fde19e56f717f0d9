"""Processes of one kind (agents, operators), by name: started, awaited, killed and brought back one by one.

Each tells in an event file of its own when it is `ready`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from quorate.errors import SetupError
from quorate.events import EventWriter, Mark, has_occurred, occurred
from quorate.localnet.processes import Child, Supervisor

__all__ = ["Command", "Crew"]


@dataclass(frozen=True)
class Command:
    """How one process is started; its secrets are in `env`, never in `argv`."""

    argv: tuple[str | Path, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    events: Path
    may_end_with: tuple[int, ...] = ()
    """Exit codes that are nobody's fault; any other end of its own ends the run."""
    again_after: int | None = None
    """The exit code with which a process that was ready asks to be started again: its code has changed."""


@dataclass
class Crew:
    """The processes, by name; none runs before `start`."""

    supervisor: Supervisor
    commands: Mapping[str, Command]
    _children: dict[str, Child] = field(default_factory=dict)
    _since: dict[str, Mark] = field(default_factory=dict)

    def child(self, name: str) -> Child:
        """The process of a member that was started."""
        return self._children[name]

    async def start(self, *names: str) -> None:
        """Start these (all, if none is named); returns before they are ready."""
        for name in names or tuple(self.commands):
            command = self.commands[name]
            self._since[name] = Mark.end_of(command.events)
            self._children[name] = await self.supervisor.spawn(
                name,
                command.argv,
                env=command.env,
                cwd=command.cwd,
                may_end_with=command.may_end_with,
                on_end=partial(self._again, name),
            )

    async def _again(self, name: str, child: Child) -> bool:
        """Start one that asks for it again; one that asks before it is ready would do so for ever."""
        command = self.commands[name]
        if child.returncode != command.again_after or not has_occurred(
            command.events, "ready", since=self._since[name]
        ):
            return False
        await self.start(name)
        return True

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
            writer = EventWriter(self.commands[name].events, name)
            writer.emit("down")
            writer.close()

    async def stop(self) -> None:
        """End all of them in order, at the same time."""
        await asyncio.gather(*(child.stop() for child in self._children.values()))


def _not_ready(child: Child, within_s: float) -> SetupError:
    lines = "".join(f"\n    {line}" for line in child.last_lines()) or " (none)"
    return SetupError(
        f"{child.name} is not ready after {within_s:.0f} s; its last lines:{lines}", fix=f"its output is in {child.log}"
    )
