"""Files that survive a killed process and a power cut: the old content or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_file", "sync_folder"]


def replace_file(path: Path, content: bytes, *, mode: int = 0o666, is_synced: bool = True) -> None:
    """Put `content` in the place of the file at `path`, which need not exist; it is on disk when this returns.

    `mode` is the new file's, less the umask. A reader sees the file as it was, or as it is. `OSError` where there is
    no room, say: the file is then as it was. Without `is_synced` it survives a killed process, not a power cut, and
    costs no wait for the disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    if is_synced:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write to disk which names there are in `folder`: without that a power cut may take back a rename."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
