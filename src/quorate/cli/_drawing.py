"""A service's rounds as a diagram: Mermaid, or SVG laid out here. Pure and deterministic: no tool, no font metrics.

The layout: a round stands in the row that is as far from the start as its shortest way there. An edge one row down
is a straight line between the rows; a loop goes around its round's right side; every other edge runs in a lane of its
own at the right of all rounds, so no edge crosses a box.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from quorate.fsm import Service

__all__ = ["Diagram", "Edge", "mermaid", "svg"]

_CHARACTER = 7.3  # width of a monospaced character of 12 px
_BOX_HEIGHT, _ROW_HEIGHT, _GAP, _MARGIN = 34, 112, 56, 24
_LANE, _LOOP, _STUB, _PADDING = 22, 20, 15, 14


@dataclass(frozen=True)
class Edge:
    """What leads from one round to another: all the events that do."""

    source: str
    target: str
    events: tuple[str, ...]

    @property
    def label(self) -> str:
        """The events as they are written on the edge."""
        return ", ".join(self.events)


@dataclass(frozen=True)
class Diagram:
    """Rounds by the names of their functions, and the edges between them."""

    name: str
    start: str
    final: frozenset[str]
    rows: tuple[tuple[str, ...], ...]
    """The rounds by their distance from the start; in a row, in the order in which the table names them."""
    edges: tuple[Edge, ...]

    @staticmethod
    def of(service: Service) -> Diagram:
        """The diagram of `service`; edges between the same two rounds become one."""
        events: dict[tuple[str, str], list[str]] = {}
        for source in service.rounds:
            for (name, event), target in service.edges.items():
                if name == source:
                    events.setdefault((_plain(name), _plain(target)), []).append(event)
        edges = tuple(Edge(source, target, tuple(names)) for (source, target), names in events.items())
        start = _plain(service.start.name)
        rounds = [_plain(one) for one in dict.fromkeys([*service.rounds, *service.edges.values()])]
        final = frozenset(_plain(one.name) for one in service.final)
        return Diagram(service.name, start, final, _rows(start, rounds, edges), edges)


def mermaid(diagram: Diagram) -> str:
    """A Mermaid state diagram: GitHub and most editors show it."""
    lines = ["stateDiagram-v2", f"    [*] --> {diagram.start}"]
    lines += [f"    {edge.source} --> {edge.target}: {edge.label}" for edge in diagram.edges]
    lines += [f"    {name} --> [*]" for row in diagram.rows for name in row if name in diagram.final]
    return "\n".join(lines) + "\n"


def svg(diagram: Diagram) -> str:
    """An SVG image that needs nothing beside itself; it follows the reader's dark or light background."""
    boxes, right = _place(diagram)
    body: list[str] = []
    lane = right + _GAP / 2
    labels = right
    below = [0] * len(diagram.rows)  # how many edges already run below each row
    for edge in diagram.edges:
        source, target = boxes[edge.source], boxes[edge.target]
        if target.row == source.row + 1:
            body += _straight(edge, source, target)
            labels = max(labels, (source.middle + target.middle) / 2 + len(edge.label) * _CHARACTER)
            continue
        is_loop = source is target
        body += _in_lane(edge, source, target, source.right + _LOOP if is_loop else lane, below[source.row])
        labels = max(labels, source.right + len(edge.label) * _CHARACTER)
        below[source.row] += 1
        lane += 0 if is_loop else _LANE
    for name, box in boxes.items():
        kind = "start" if name == diagram.start else "final" if name in diagram.final else "round"
        body.append(
            f'<rect class="{kind}" x="{_number(box.x)}" y="{_number(box.y)}" width="{_number(box.width)}" '
            f'height="{_BOX_HEIGHT}" rx="8"/>'
        )
        body.append(_text(box.middle, box.y + _BOX_HEIGHT / 2 + 4, name, "middle"))
    last = _STUB * (below[-1] + 1)
    width = max(labels, lane) + _MARGIN
    height = (len(diagram.rows) - 1) * _ROW_HEIGHT + _BOX_HEIGHT + last
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_number(width)}" height="{height + 2 * _MARGIN}" '
            f'viewBox="0 0 {_number(width)} {height + 2 * _MARGIN}" role="img">',
            f"<title>The rounds of {escape(diagram.name)}</title>",
            _STYLE,
            *body,
            "</svg>\n",
        ]
    )


_STYLE = """\
<style>
text { font: 12px ui-monospace, monospace; fill: #24292f } .event { fill: #57606a; font-size: 11px }
rect { fill: #f6f8fa; stroke: #57606a } .start { stroke: #1a7f37; stroke-width: 2 } .final { stroke-width: 3 }
path { fill: none; stroke: #57606a } marker path { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .event { fill: #8d96a0 } rect { fill: #161b22; stroke: #8d96a0 } path { stroke: #8d96a0 }
  marker path { fill: #8d96a0 }
}
</style>
<defs><marker id="end" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">
<path d="M0,0 L8,4 L0,8 z"/></marker></defs>"""


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    width: float
    row: int

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width


def _rows(start: str, rounds: list[str], edges: tuple[Edge, ...]) -> tuple[tuple[str, ...], ...]:
    distance, ahead = {start: 0}, [start]
    for here in ahead:
        for edge in edges:
            if edge.source == here and edge.target not in distance:
                distance[edge.target] = distance[here] + 1
                ahead.append(edge.target)
    deepest = max(distance.values())
    return tuple(tuple(name for name in rounds if distance[name] == row) for row in range(deepest + 1))


def _place(diagram: Diagram) -> tuple[Mapping[str, _Box], float]:
    """Where each box stands, and where the widest row ends."""
    widths = {name: len(name) * _CHARACTER + 2 * _PADDING for row in diagram.rows for name in row}
    row_widths = [sum(widths[name] for name in row) + _GAP * (len(row) - 1) for row in diagram.rows]
    widest = max(row_widths)
    boxes: dict[str, _Box] = {}
    for number, row in enumerate(diagram.rows):
        x = _MARGIN + (widest - row_widths[number]) / 2
        for name in row:
            boxes[name] = _Box(x, _MARGIN + number * _ROW_HEIGHT, widths[name], number)
            x += widths[name] + _GAP
    return boxes, _MARGIN + widest


def _straight(edge: Edge, source: _Box, target: _Box) -> Iterator[str]:
    top, bottom = source.y + _BOX_HEIGHT, target.y
    yield _path(f"M{_number(source.middle)},{_number(top)} L{_number(target.middle)},{_number(bottom)}")
    at = 0.7
    x = source.middle + at * (target.middle - source.middle)
    yield _text(x + 6, top + at * (bottom - top) + 4, edge.label, "start", "event")


def _in_lane(edge: Edge, source: _Box, target: _Box, lane: float, before: int) -> Iterator[str]:
    """Out at the lower right of the source, along the lane, in at the upper right of the target.

    Between the boxes of a row and the lanes it runs above or below that row: it may have other boxes at the right.
    `before` edges run below the source's row already, this one below them, with its label on it.
    """
    out, into = source.y + _BOX_HEIGHT + _STUB * (before + 1), target.y - 10
    x = source.right - 12 + 5 * min(before, 1)
    yield _path(
        f"M{_number(x)},{_number(source.y + _BOX_HEIGHT)} V{_number(out)} H{_number(lane)} "
        f"V{_number(into)} H{_number(target.right - 10)} V{_number(target.y)}"
    )
    yield _text(x + 5, out - 3, edge.label, "start", "event")


def _path(way: str) -> str:
    return f'<path d="{way}" marker-end="url(#end)"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _plain(round_name: str) -> str:
    """The round as its function is called: `read_proposal` for ReadProposalRound."""
    words = re.findall(r"[A-Z][^A-Z]*", round_name.removesuffix("Round"))
    return "_".join(itertools.chain(word.lower() for word in words)) or round_name
