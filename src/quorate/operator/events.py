"""What an operator tells whoever watches it: one JSON object a line, appended to a file. Never a secret.

| kind | fields |
|---|---|
| starting | models, memory_need |
| models | seconds (the models answer) |
| registered | operator, stake, sent (what had to be sent: register, approve, stake, ...) |
| ready | address, endpoint, models |
| stopped | |
| error | message, fix |
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Events"]


class Events:
    """Appends to a file, each line by one write, so that no reader sees half of one."""

    def __init__(self, path: Path, who: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._who = who
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event; the time and the operator's name are added."""
        event = {"t": round(time.time(), 4), "who": self._who, "kind": kind, **fields}
        os.write(self._file, (json.dumps(event, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
