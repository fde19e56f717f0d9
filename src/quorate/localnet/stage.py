"""What every run on this machine needs before its first process: folders, a supervisor, the view and its events.

async with stage(root, "Quorate demo") as on:
    async with on.step("start a local EVM chain"), ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quorate.events import EventWriter, Tailer
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import RunDir, run_dir
from quorate.localnet.story import Story
from quorate.localnet.view import follow, view
from quorate.units import Address

__all__ = ["Stage", "stage"]


@dataclass(frozen=True)
class Stage:
    """A run that has begun: nothing of it outlives the block of `stage`."""

    run: RunDir
    supervisor: Supervisor
    story: Story
    """What has happened so far."""
    events: EventWriter
    """The command's own events."""

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Tell that `text` is being done, and how long it took when the block ends well."""
        self.events.emit("step", text=text)
        began = time.monotonic()
        yield
        self.events.emit("step", text=text, done=True, s=round(time.monotonic() - began, 3))

    def note(self, text: str) -> None:
        """Tell one thing for good."""
        self.events.emit("note", text=text)

    def name(self, names: Mapping[Address, str]) -> None:
        """Tell the view the names of these addresses."""
        self.story.names.update({address.lower(): name for address, name in names.items()})


@asynccontextmanager
async def stage(root: Path, title: str, *, who: str = "quorate", to_stderr: bool = False) -> AsyncIterator[Stage]:
    """Begin a run below `root`; at the end stop all its processes, show the last events and remove its scratch.

    All `*.jsonl` in the run's folder for events are shown as they grow. `who` is the command's own name there.
    """
    with run_dir(root) as run, view(title, to_stderr=to_stderr) as shown:
        tailer = Tailer()
        tailer.add_folder(run.events)
        events = EventWriter(run.events / f"{who}.jsonl", who)
        following = asyncio.create_task(follow(tailer, shown), name="view")
        try:
            async with Supervisor(run.logs) as supervisor:
                supervisor.remove_if_killed(run.scratch)
                try:
                    yield Stage(run, supervisor, shown.story, events)
                except asyncio.CancelledError:  # by Ctrl-C: it may take some seconds
                    events.emit("note", text="stopping all that was started")
                    raise
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            events.close()
