"""The manifest of a model: the hash of every file in its folder. Its hash in the registry says what is served."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from quorate.errors import ConfigError
from quorate.signatures import keccak
from quorate.units import Hash

__all__ = ["compute_manifest_hash", "hash_files", "hash_folder"]


def compute_manifest_hash(files: Mapping[str, str]) -> Hash:
    """keccak256 of the manifest: a line `SHA256  PATH` for each file, sorted by path (as `sha256sum` prints them)."""
    lines = "".join(f"{files[path]}  {path}\n" for path in sorted(files))
    return Hash("0x" + keccak(text=lines).hex())


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file in the folder by its path there; reads them whole (0.3 s for 270 MB)."""
    if not folder.is_dir():
        raise ConfigError(f"there is no model folder {folder}", fix="make the models: ./quorate doctor says how")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise ConfigError(f"the model folder {folder} is empty", fix="remove it and make the models again")
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in files}


def hash_folder(folder: Path) -> Hash:
    """The manifest hash of the model in this folder."""
    return compute_manifest_hash(hash_files(folder))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
