"""What each key has used: a line for each part of an answer that an operator signed for, appended to a file.

Invoices are made of it (`./quorate gateway usage`), and a key's budget is held by it. It is written when an answer
ends, also one that broke off or that nobody stayed for: what was delivered is paid for.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate.errors import ConfigError
from quorate.gateway.api_keys import ApiKey
from quorate.model import SignedReceipt

__all__ = ["Ledger", "Usage"]


@dataclass
class Usage:
    """Of one key, all in all."""

    parts: int = 0
    """Of answers: one for each operator that had a part in one."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """The usage of all keys, in a file that only grows. One gateway writes to it at a time."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Reads what is there; raises ConfigError where that is none, or another's. A torn last line is cut off."""
        self._now = now
        self._unwritten: list[bytes] = []
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._usage, whole = _read(path)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(
                f"another gateway writes to {path}", fix="give each gateway a ledger of its own"
            ) from None
        except ConfigError:
            os.close(self._file)
            raise
        os.ftruncate(self._file, whole)

    @staticmethod
    def read(path: Path) -> Mapping[str, Usage]:
        """What each key has used, by its name, also while a gateway runs."""
        return _read(path)[0]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def usage(self, name: str) -> Usage:
        """What the key of this name has used."""
        return self._usage[name]

    def is_spent(self, key: ApiKey) -> bool:
        """Whether nothing is left of its budget. The answer that passes the budget is the last one."""
        return key.most_tokens is not None and self.usage(key.name).tokens >= key.most_tokens

    def add(self, key: ApiKey, answer: str, receipts: Iterable[SignedReceipt]) -> None:
        """Note an answer; raises OSError where the disk is full: it is noted by the next `flush` that can."""
        for signed in receipts:
            row = {
                "time": int(self._now()),
                "key": key.name,
                "answer": answer,
                "model": signed.receipt.model,
                "operator": signed.receipt.operator,
                "prompt_tokens": signed.receipt.prompt_tokens,
                "completion_tokens": signed.receipt.completion_tokens,
                "receipt": "0x" + signed.receipt.digest().hex(),
            }
            _count(self._usage, row)
            self._unwritten.append(json.dumps(row).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write what could not be written yet; raises OSError where it still cannot."""
        while self._unwritten:
            line = self._unwritten[0]
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            del self._unwritten[0]


def _read(path: Path) -> tuple[defaultdict[str, Usage], int]:
    """What is in the file, and where its last whole line ends."""
    usage: defaultdict[str, Usage] = defaultdict(Usage)
    whole = 0
    for row, end in _rows(path):
        _count(usage, row)
        whole = end
    return usage, whole


def _count(usage: defaultdict[str, Usage], row: Mapping[str, Any]) -> None:
    used = usage[row["key"]]
    used.parts += 1
    used.prompt_tokens += row["prompt_tokens"]
    used.completion_tokens += row["completion_tokens"]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line, and where it ends."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # the machine stopped in the middle of it
            end += len(line)
            try:
                row = json.loads(line)
                int(row["prompt_tokens"]), int(row["completion_tokens"]), str(row["key"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}, line {number}, is no line of a ledger: {line[:80]!r}") from None
            yield row, end
