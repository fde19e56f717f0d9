"""Builds the contracts and writes their ABI and bytecode into the Python package, one JSON file a contract.

The files are committed, so that nobody needs forge or solc to run Quorate; ``--check`` (in CI) fails if they differ
from what the sources give. The build is deterministic: foundry.toml leaves metadata out of the bytecode, and
``third_party/evm`` pins the compiler.

    python contracts/export.py [--check] [--forge PATH]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ARTIFACTS = HERE.parent / "src/quorate/chain/artifacts"
FORGE = HERE.parent / "third_party/evm/node_modules/@foundry-rs/forge-linux-amd64/bin/forge"
CONTRACTS = ("InferencePayments", "OperatorRegistry", "QuorateGovernor", "QuorateToken", "TimelockController")


def main() -> int:
    """Exit code 0: written, or equal under ``--check``; 1: they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed file differs")
    parser.add_argument("--forge", type=Path, default=FORGE, help="the forge binary (default: the pinned one)")
    options = parser.parse_args()
    # In its own folder: forge takes the path of solc in foundry.toml from where it is started.
    subprocess.run([options.forge.resolve(), "build"], cwd=HERE, check=True, stdout=sys.stderr)
    texts = {ARTIFACTS / f"{name}.json": _artifact_text(name) for name in CONTRACTS}
    if options.check:
        stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path.relative_to(HERE.parent)} differs from contracts/src; run python contracts/export.py")
        return 1 if stale else 0
    ARTIFACTS.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    return 0


def _artifact_text(name: str) -> str:
    built: dict[str, Any] = json.loads(next((HERE / "out").glob(f"*/{name}.json")).read_text())
    artifact = {"abi": built["abi"], "bytecode": built["bytecode"]["object"]}
    if built["bytecode"].get("linkReferences"):
        raise SystemExit(f"{name} needs linked libraries, which nobody here links")
    return json.dumps(artifact, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
