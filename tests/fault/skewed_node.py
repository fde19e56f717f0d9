"""Builds CometBFT with a clock that an environment variable sets off: `python -m tests.fault.skewed_node TARGET`.

Nothing else reaches that clock: time namespaces leave CLOCK_REALTIME alone, and libfaketime does not see Go read the
vDSO. The overlay changes one line of one file of the pinned module (`types/time`: `Now`, which stamps votes and
proposals). Timeouts are monotonic and stay what they are. For tests alone; about 100 s on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["VARIABLE", "build"]

VARIABLE = "QUORATE_TEST_SKEW_MS"
_SOURCE = Path(__file__).resolve().parents[2] / "third_party" / "cometbft"
_MODULE = "github.com/cometbft/cometbft"
_HONEST = "return Canonical(time.Now())\n}\n"
_SKEWED = f"""return Canonical(time.Now().Add(skew))
}}

var skew = func() time.Duration {{
	ms, _ := strconv.Atoi(os.Getenv("{VARIABLE}"))
	return time.Duration(ms) * time.Millisecond
}}()
"""


def build(target: Path) -> None:
    """Write the program to `target`; Go has to be there."""
    _go("mod", "download", _MODULE)
    original = Path(_go("list", "-m", "-f", "{{.Dir}}", _MODULE).strip()) / "types" / "time" / "time.go"
    text = original.read_text()
    if text.count(_HONEST) != 1 or text.count('\t"time"\n') != 1:
        raise SystemExit(f"{original} is not what this was written for: see what its Now does today")
    with tempfile.TemporaryDirectory() as folder:
        changed, overlay = Path(folder) / "time.go", Path(folder) / "overlay.json"
        changed.write_text(text.replace(_HONEST, _SKEWED).replace('\t"time"\n', '\t"os"\n\t"strconv"\n\t"time"\n'))
        overlay.write_text(json.dumps({"Replace": {str(original): str(changed)}}))
        _go("build", "-overlay", str(overlay), "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o",
            str(target.absolute()), f"{_MODULE}/cmd/cometbft")  # fmt: skip


def _go(*words: str) -> str:
    settings = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    return subprocess.run(
        ["go", *words], cwd=_SOURCE, env=settings, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    build(Path(sys.argv[1]))
