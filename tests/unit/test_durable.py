"""A file is replaced whole or not at all, wherever the process dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quorate.durable import replace_file


class _Killed(BaseException):
    """kill -9."""


@pytest.mark.parametrize(
    ("step", "left"),
    [("open", b"old"), ("fdopen", b"old"), ("fsync", b"old"), ("replace", b"old"), ("close", b"new")],
)
def test_wherever_it_is_killed_the_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, left: bytes
) -> None:
    """`close` is that of the folder: the new name is there, though perhaps not yet on disk."""
    path = tmp_path / "kept"
    replace_file(path, b"old")

    def die(*_: Any, **__: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, step, die)
        with pytest.raises(_Killed):
            replace_file(path, b"new")
    assert path.read_bytes() == left
    replace_file(path, b"newer")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("kept", b"newer")], "nothing half stays"


def test_content_and_names_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, bool]] = []
    fsync, path = os.fsync, tmp_path / "kept"

    def noted(file: int) -> None:
        done.append((os.readlink(f"/proc/self/fd/{file}"), path.exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    replace_file(path, b"new")
    assert done == [(str(tmp_path / ".kept.partial"), False), (str(tmp_path), True)]


def test_a_secret_is_its_owners_alone_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        modes.append(os.fstat(file).st_mode & 0o777)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    replace_file(tmp_path / "secret", b"x", mode=0o600)
    assert modes[0] == 0o600
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_what_is_written_every_few_seconds_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename alone already keeps a reader, and the next life of the process, from half a file."""
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("synced"))
    replace_file(tmp_path / "kept", b"old", is_synced=False)
    replace_file(tmp_path / "kept", b"new", is_synced=False)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("kept", b"new")]
