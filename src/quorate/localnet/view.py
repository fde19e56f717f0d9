"""Shows a run while it goes on: lines that stay, and in a terminal a small board below them of what is the case now.

`python -m quorate.localnet.view events.jsonl [--speed 4]` plays a recorded run; with `--svg FILE` it draws its lines.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.terminal_theme import MONOKAI
from rich.text import Text

from quorate.events import Event, Tailer, replay
from quorate.localnet.story import Line, Story, Tone, duration

__all__ = ["View", "draw", "follow", "view"]

_SUBJECT_WIDTH = 14  # find_proposal, operator-1
_TIME_WIDTH = 7
_LONGEST_PLAIN = 240
_FRAMES_S = 4
_PICTURE_WIDTH = 112
_SIGNS = {Tone.PLAIN: " ", Tone.DONE: "✓", Tone.WORKING: "·", Tone.WAITING: "…", Tone.BAD: "✗"}
_STYLES = {Tone.PLAIN: "", Tone.DONE: "green", Tone.WORKING: "cyan", Tone.WAITING: "yellow", Tone.BAD: "red"}


class View(Protocol):
    """Something that events can be shown on."""

    story: Story

    def show(self, event: Event) -> None:
        """Take one event and show what it changes."""


@contextmanager
def view(title: str, *, names: Mapping[str, str] | None = None, to_stderr: bool = False) -> Iterator[View]:
    """A board below the lines if the output is a terminal, else the lines alone.

    With `to_stderr` standard output stays free for what a program is to read (`--json`).
    """
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=False)
    story = Story(names)
    if not console.is_terminal:
        yield _Lines(story, console)
        return
    board = _Board(story, title, console)
    with Live(console=console, get_renderable=board.render, refresh_per_second=_FRAMES_S, transient=True):
        yield board


async def follow(tailer: Tailer, shown: View) -> None:
    """Show all events as they come, until cancelled; then show the rest."""
    try:
        async for event in tailer:
            shown.show(event)
    finally:
        for event in tailer.rest():
            shown.show(event)


class _Lines:
    """For logs and pipes: every line whole, without colour or movement."""

    def __init__(self, story: Story, console: Console) -> None:
        self.story = story
        self._console = console

    def show(self, event: Event) -> None:
        for line in self.story.add(event):
            text = f"{_clock(line.at_s):>{_TIME_WIDTH}}  {line.subject:<{_SUBJECT_WIDTH}} {line.text}"
            self._console.out(_cut(text, _LONGEST_PLAIN), highlight=False)


class _Board:
    """For a terminal: lines fit its width, and the board below says who does what."""

    def __init__(self, story: Story, title: str, console: Console) -> None:
        self.story = story
        self._title = title
        self._console = console

    def show(self, event: Event) -> None:
        for line in self.story.add(event):
            self._console.print(_drawn(line))

    def render(self) -> RenderableType:
        self.story.pass_time(time.time())
        return Group(Rule(style="dim"), *self._heading(), self._members(), *self._waiting())

    def _heading(self) -> list[RenderableType]:
        story = self.story
        grid = Table.grid(expand=True)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        what = f"round {story.sequence}: {story.round}" if story.round else story.step
        left = Text.assemble((self._title, "bold"), ("   ", ""), (what, "cyan"))
        grid.add_row(left, Text(_clock(story.elapsed_s), "dim"))
        second = [Text(story.step, "dim", no_wrap=True, overflow="ellipsis")] if story.step and story.round else []
        return [grid, *second]

    def _members(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, width=_SUBJECT_WIDTH)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        grid.add_column(no_wrap=True, justify="right", width=_TIME_WIDTH, style="dim")
        for name, member in [*sorted(self.story.operators.items()), *sorted(self.story.agents.items())]:
            waited_ms = 1000 * (self.story.now - member.since)
            style = _STYLES[member.tone]
            clock = duration(waited_ms) if waited_ms >= 1000 and member.tone is not Tone.DONE else ""
            grid.add_row(Text(_SIGNS[member.tone], style), name, Text(member.doing), clock)
        return grid

    def _waiting(self) -> list[RenderableType]:
        if not self.story.waiting:
            return []
        return [Text(f"… waiting: {self.story.waiting}", "yellow", no_wrap=True, overflow="ellipsis")]


def _drawn(line: Line) -> RenderableType:
    """One line for good; a long text goes on below itself."""
    style = _STYLES[line.tone]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", width=_TIME_WIDTH, style="dim")
    grid.add_column(width=1)
    grid.add_column(min_width=_SUBJECT_WIDTH, no_wrap=True, style="bold")
    grid.add_column()
    text_style = style if line.tone in (Tone.BAD, Tone.WAITING) else ""
    grid.add_row(_clock(line.at_s), Text(_SIGNS[line.tone], style), line.subject, Text(line.text, text_style))
    return grid


def _clock(seconds: float) -> str:
    """Minutes and seconds since the start, to the tenth: `1:02.5`."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def draw(events: Sequence[Event], title: str) -> str:
    """The lines of a run as an SVG of a terminal; it refers to nothing outside of itself."""
    console = Console(record=True, width=_PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    story = Story()
    for event in events:
        for line in story.add(event):
            console.print(_drawn(line))
    svg = console.export_svg(title=title, theme=MONOKAI)
    without_fonts = re.sub(
        r"@font-face \{.*?\}|<!--.*?-->", "", svg, flags=re.DOTALL
    )  # they would come from a web server
    return without_fonts.replace("Fira Code", "ui-monospace, Menlo, Consolas")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quorate.localnet.view", description="Play a recorded run.")
    parser.add_argument("events", type=Path, nargs="+", help="JSON lines files of one run")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than it went")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the run's lines as a picture, and play nothing")
    parser.add_argument("--title", default="replay", help="what the picture's window is called")
    options = parser.parse_args()
    events = sorted((event for path in options.events for event in replay(path)), key=lambda event: event.t)
    if options.svg:
        options.svg.write_text(draw(events, options.title), encoding="utf-8")
        return
    with view("replay") as shown:
        late = time.time() - events[0].t if events else 0.0
        for before, event in zip([events[0], *events], events, strict=False):
            time.sleep(max(0.0, (event.t - before.t) / options.speed))
            shown.show(Event(event.t + late, event.who, event.kind, event.fields))


if __name__ == "__main__":
    _main()
