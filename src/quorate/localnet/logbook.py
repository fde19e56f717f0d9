"""The logs and events of a run as one sequence of records, in the order of time.

An agent's log has one JSON object a line (quorate.host.logs); what else a process prints (a traceback, another
program's lines) is taken as text at the time of the record before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorate.events import Tail, parse

__all__ = ["LEVELS", "Logbook", "Record", "sources_of"]

LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True)
class Record:
    """One thing that a process has said."""

    t: float
    who: str
    level: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As JSON."""
        return json.dumps(
            {"t": self.t, "who": self.who, "level": self.level, "message": self.text, **self.fields}, ensure_ascii=False
        )


class Logbook:
    """Reads files as they grow."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._sources = [_Source(path) for path in files]

    def new(self) -> list[Record]:
        """What was written since the last call, in the order of time."""
        return sorted((one for source in self._sources for one in source.new()), key=lambda record: record.t)


def sources_of(folder: Path, who: Iterable[str], *, node: bool) -> list[Path]:
    """The files of these processes (all agents and operators, if none is named) of the run in `folder`.

    With `node` also the logs of the agents' CometBFT nodes.
    """
    names = tuple(who)
    logs = sorted((folder / "logs").glob("*.log"))
    known = [path.stem for path in logs if not path.stem.endswith("-cometbft")]
    chosen = names or tuple(name for name in known if name.startswith(("agent-", "operator-")))
    files = [path for path in logs if path.stem in chosen]
    files += [path for path in logs if node and path.stem.removesuffix("-cometbft") in chosen and path not in files]
    return [*files, *(path for path in sorted((folder / "events").glob("*.jsonl")) if path.stem in chosen)]


class _Source:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._who = path.stem
        self._read = _event if path.suffix == ".jsonl" else _logged
        self._tail = Tail(path)
        self._t = 0.0

    def new(self) -> Iterator[Record]:
        for line in self._tail.new_lines():
            self._t = self._t or self._path.stat().st_ctime
            record = self._read(line, self._who, self._t)
            self._t = record.t
            yield record


def _event(line: str, who: str, _: float) -> Record:
    event = parse(line, who)
    level = {"error": "error", "waiting": "warning" if event.get("reason") else "info", "refused": "warning"}
    said = " ".join(f"{name}={value}" for name, value in event.fields.items() if value not in (None, ""))
    return Record(event.t, event.who, level.get(event.kind, "info"), f"{event.kind} {said}".strip(), event.fields)


def _logged(line: str, who: str, t: float) -> Record:
    try:
        said = json.loads(line)
        known = {name: said.pop(name) for name in ("t", "level", "message")}
        return Record(float(known["t"]), who, str(known["level"]), str(known["message"]), said)
    except (ValueError, KeyError, TypeError, AttributeError):  # not one of ours: a traceback, another program's line
        return Record(t, who, "error" if line.startswith(("error:", "Traceback")) else "info", line)
