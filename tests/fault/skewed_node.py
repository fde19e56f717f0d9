"""Builds CometBFT with a clock that an environment variable sets off: `python -m tests.fault.skewed_node TARGET`.

Nothing else reaches that clock: time namespaces leave CLOCK_REALTIME alone, and libfaketime does not see Go read the
vDSO. One function of one file changes in a copy of the pinned module, whose constants are set as in ours
(third_party/cometbft): `Now` of `types/time`, which stamps votes and proposals. Timeouts are monotonic and stay what
they are. (`go build -overlay` would do, but refuses to replace what is in the module cache.) For tests alone; about
100 s on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from quorate.localnet.tools.parts import set_constants

__all__ = ["VARIABLE", "build"]

VARIABLE = "QUORATE_TEST_SKEW_MS"
_PINS = Path(__file__).resolve().parents[2] / "third_party" / "cometbft"
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
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("go.mod", "go.sum"):
            shutil.copy(_PINS / name, place)
        _go(place, "mod", "download", _MODULE)
        source = place / "cometbft"
        pristine = Path(_go(place, "list", "-m", "-f", "{{.Dir}}", _MODULE).strip())
        shutil.copytree(pristine, source, ignore=shutil.ignore_patterns("docs", "spec"), copy_function=shutil.copyfile)
        for path in (source, *source.rglob("*/")):
            path.chmod(0o755)  # Go's module cache is read-only
        set_constants(source, _PINS / "constants.toml")
        _skew(source / "types" / "time" / "time.go")
        _go(place, "mod", "edit", f"-replace={_MODULE}=./cometbft")
        _go(place, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(target.absolute()),
            f"{_MODULE}/cmd/cometbft")  # fmt: skip


def _skew(clock: Path) -> None:
    text = clock.read_text()
    if text.count(_HONEST) != 1 or text.count('\t"time"\n') != 1:
        raise SystemExit(f"{clock} is not what this was written for: see what its Now does today")
    clock.write_text(text.replace(_HONEST, _SKEWED).replace('\t"time"\n', '\t"os"\n\t"strconv"\n\t"time"\n'))


def _go(place: Path, *words: str) -> str:
    settings = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    return subprocess.run(["go", *words], cwd=place, env=settings, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    build(Path(sys.argv[1]))
