"""The agent's log: one JSON object a line, each with the period, the round and the agent that it belongs to.

`t` (seconds since 1970), `level`, `logger`, `message`, `agent`, `service`, `chain`; `period`, `round` and `sequence`
of the act that speaks, or else of the last committed round; `error` holds a traceback.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from quorate.fsm import Period

__all__ = ["JsonLines", "bind", "start"]

_acting: ContextVar[Period | None] = ContextVar("acting", default=None)


def bind(period: Period) -> None:
    """All that this task logs from now on belongs to `period`'s round."""
    _acting.set(period)


def start(handler: logging.Handler, **about: str) -> JsonLines:
    """Write the process's log to `handler`; `about` stands on every line."""
    lines = JsonLines(about)
    handler.setFormatter(lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return lines


class JsonLines(logging.Formatter):
    """Formats records as JSON, each on one line."""

    def __init__(self, about: Mapping[str, str]) -> None:
        super().__init__()
        self._about = dict(about)
        self.committed: Callable[[], Period | None] = lambda: None
        """The round that the quorum is in: what no act says belongs to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "t": round(record.created, 4),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._about,
        }
        period = _acting.get() or self.committed()
        if period is not None:
            line |= {"period": period.state.period, "round": period.round.name, "sequence": period.sequence}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
