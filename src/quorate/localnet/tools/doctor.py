"""What is there on this machine, what is missing, and what to do about each: the checks behind `./quorate doctor`.

Looks and changes nothing. Standard library only, so that it can answer before anything is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from quorate.errors import QuorateError
from quorate.localnet.run_dir import available_memory
from quorate.localnet.tools.cache import size_of
from quorate.localnet.tools.make import is_offline
from quorate.localnet.tools.parts import (
    GLIBC_OF_ANVIL,
    Site,
    Tool,
    base_python,
    clean_environment,
    needed_version,
    part,
    version_of,
)
from quorate.localnet.tools.progress import in_bytes

__all__ = ["Finding", "examine", "main", "report"]

State = Literal["ok", "note", "missing", "bad"]
MEMORY_FOR_DEMO = 8_000_000_000  # two model servers of 5 and 1 GB, four agents, four validators
SHM = Path("/dev/shm")  # noqa: S108  (its size is asked, nothing is written)
SHARED_MEMORY = 512 * 1024 * 1024  # what a run's chains write (localnet/run_dir.py)
_CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One check: its state, what was found, what that means, and what to do (nothing if all is well)."""

    check: str
    state: State
    found: str
    meaning: str
    fix: str = ""


def examine(site: Site, *, thorough: bool = False) -> list[Finding]:
    """All checks, in the order in which a person would act on them."""
    machine: list[Callable[[Site], Finding]] = [
        _system, _python, _c_library, _processor, _memory, _shared_memory, _ports, _cache_folder, _disk, _network
    ]  # fmt: skip
    findings = [check(site) for check in machine]
    findings += [_part(site, tool, thorough=thorough) for tool in Tool]
    return [*findings, _links(site), _localnets(site), _old_parts(site)]


def report(findings: Sequence[Finding]) -> str:
    """The findings for people: a line each, and below it what to do where there is something to do."""
    marks = {"ok": "ok     ", "note": "note   ", "missing": "missing", "bad": "BAD    "}
    width = max(len(f.check) for f in findings)
    lines: list[str] = []
    for f in findings:
        lines.append(f"{marks[f.state]} {f.check:<{width}}  {f.found}")
        indent = " " * (len(marks["ok"]) + width + 3)
        if f.state != "ok":
            lines.append(f"{indent}{f.meaning}")
        if f.fix:
            lines.append(f"{indent}-> {f.fix}")
    return "\n".join([*lines, "", _summary(findings)])


def main(arguments: Sequence[str]) -> int:
    """`doctor [--json] [--verify]` for the bootstrap; the command line proper has the same options."""
    if unknown := [a for a in arguments if a not in ("--json", "--verify")]:
        sys.stdout.write(
            "Usage: ./quorate doctor [--json] [--verify]\n\n  What is there, what is missing, what to do.\n"
        )
        return 0 if unknown == ["--help"] else 2
    findings = examine(Site.here(), thorough="--verify" in arguments)
    sys.stdout.write((as_json(findings) if "--json" in arguments else report(findings)) + "\n")
    return exit_code(findings)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"ok": not exit_code(findings), "checks": [asdict(f) for f in findings]}, indent=1)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where something keeps Quorate from working here; what set-up will make is no fault."""
    return int(any(f.state == "bad" for f in findings))


def _summary(findings: Sequence[Finding]) -> str:
    bad = [f.check for f in findings if f.state == "bad"]
    absent = [f.check for f in findings if f.state == "missing"]
    if bad:
        return f"{len(bad)} in the way: {', '.join(bad)}."
    if absent:
        names = ", ".join(absent)
        return (
            f"Nothing is in the way. Not set up yet: {names} (each command makes what it needs; all: ./quorate setup)."
        )
    return "All is set up. Next: ./quorate demo"


# ------------------------------------------------------------ the machine


def _system(site: Site) -> Finding:
    found = f"{platform.system()} {platform.release()} on {platform.machine()}"
    meaning = "Linux on x86_64 runs everything; on aarch64 the local EVM chain is missing."
    if sys.platform != "linux":
        return Finding("system", "bad", found, meaning, "Use a Linux container or virtual machine.")
    if platform.machine() != "x86_64":
        return Finding("system", "note", found, meaning, "For the demo use an x86_64 machine.")
    return Finding("system", "ok", found, meaning)


def _python(site: Site) -> Finding:
    found = f"Python {platform.python_version()} ({base_python()})"
    meaning = "The locked packages are for Python 3.11, 3.12 and 3.13."
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", "ok", found, meaning)
    return Finding("Python", "bad", found, meaning, "Install one of them, or set QUORATE_PYTHON to one.")


def _c_library(site: Site) -> Finding:
    name, version = platform.libc_ver()
    meaning = f"anvil, the local EVM chain, needs glibc {GLIBC_OF_ANVIL[0]}.{GLIBC_OF_ANVIL[1]} or newer."
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if name == "glibc" and numbers >= GLIBC_OF_ANVIL:
        return Finding("C library", "ok", f"glibc {version}", meaning)
    return Finding(
        "C library",
        "bad",
        f"{name or 'not glibc'} {version}".strip(),
        meaning,
        "Use a newer system, for example Debian 12 in a container.",
    )


def _processor(site: Site) -> Finding:
    cores = len(os.sched_getaffinity(0))
    flags = _cpu_flags()
    found = f"{cores} cores" + (", AVX2" if "avx2" in flags else "") + (", AVX-512" if "avx512f" in flags else "")
    meaning = "The demo runs on 2 cores; vLLM's CPU build needs AVX2 on x86_64."
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding(
            "processor", "bad", found, meaning, "Use a machine with AVX2 for the models; tests without models run here."
        )
    if cores < 2:
        return Finding("processor", "note", found, meaning, "Expect the demo to take twice as long.")
    return Finding("processor", "ok", found, meaning)


def _memory(site: Site) -> Finding:
    try:
        free = available_memory()
    except OSError:
        return Finding("memory", "note", "unknown", "The demo with its two model servers needs about 8 GB.")
    meaning = f"The demo with its two model servers needs about {in_bytes(MEMORY_FOR_DEMO)} of free memory."
    if free < MEMORY_FOR_DEMO:
        return Finding(
            "memory", "note", f"{in_bytes(free)} free", meaning, "Close other programs before ./quorate demo."
        )
    return Finding("memory", "ok", f"{in_bytes(free)} free", meaning)


def _shared_memory(site: Site) -> Finding:
    meaning = "A run's chains keep their data in memory; without room there, on the disk, which is slower."
    free = shutil.disk_usage(SHM).free if SHM.is_dir() and os.access(SHM, os.W_OK) else 0
    if free >= SHARED_MEMORY:
        return Finding(str(SHM), "ok", f"{in_bytes(free)} free", meaning)
    return Finding(str(SHM), "note", f"{in_bytes(free)} free", meaning, "In a container: --shm-size 1g.")


def _ports(site: Site) -> Finding:
    meaning = "Everything listens on loopback, on ports chosen free."
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), _CONNECT_TIMEOUT_S),
        ):
            return Finding("loopback ports", "ok", "a free port on 127.0.0.1 answers", meaning)
    except OSError as error:
        return Finding(
            "loopback ports",
            "bad",
            f"127.0.0.1 does not work: {error.strerror or error}",
            meaning,
            "Bring loopback up: ip link set lo up",
        )


def _cache_folder(site: Site) -> Finding:
    meaning = "Set-up keeps all it makes there."
    folder = site.cache.root
    while not folder.exists():
        folder = folder.parent
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("cache folder", "ok", str(site.cache.root), meaning)
    return Finding(
        "cache folder",
        "bad",
        f"{folder} is not writable",
        meaning,
        "Make it writable, or set XDG_CACHE_HOME to a folder that is.",
    )


def _disk(site: Site) -> Finding:
    parts = [part(site, tool) for tool in Tool if _is_recipe_there(site, tool)]
    absent = [
        p for p in parts if not site.cache.condition(p.entry).is_ready and not _is_there_or_not_needed(site, p.tool)
    ]
    needed = sum(p.disk + p.scratch for p in absent)
    free = site.cache.free_bytes()
    found = f"{in_bytes(free)} free, {in_bytes(needed)} needed for what is not set up yet"
    meaning = "A full set-up takes about 7 GB, 6 GB of them vLLM."
    if free < needed:
        return Finding(
            "disk", "bad", found, meaning, "Free some space, or set XDG_CACHE_HOME to a folder on a larger disk."
        )
    return Finding("disk", "ok", found, meaning)


def _network(site: Site) -> Finding:
    variables = clean_environment(site.environment)
    proxy = variables.get("HTTPS_PROXY") or variables.get("https_proxy") or ""
    meaning = "Set-up fetches packages; what is set up works without a network."
    if is_offline(site.environment):
        return Finding("network", "note", "offline: you asked for it (--offline or QUORATE_OFFLINE)", meaning)
    url = proxy or variables.get("UV_DEFAULT_INDEX") or variables.get("UV_INDEX_URL") or _index_of_pip()
    target = urllib.parse.urlsplit(url)
    host, port = target.hostname, target.port or (80 if target.scheme == "http" else 443)
    if host is None:
        return Finding("network", "note", "not tried: this Python has no pip that names its package index", meaning)
    try:
        with socket.create_connection((host, port), _CONNECT_TIMEOUT_S):
            return Finding("network", "ok", f"{'the proxy ' if proxy else ''}{host} answers", meaning)
    except OSError as error:
        fix = "Connect, or set HTTPS_PROXY; a mirror is taken from pip's index-url or UV_DEFAULT_INDEX."
        return Finding(
            "network", "note", f"offline: {host}:{port} does not answer ({error.strerror or error})", meaning, fix
        )


def _index_of_pip() -> str:
    """The package index that pip takes when nothing is configured; empty where there is no pip to ask."""
    ask = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    answer = subprocess.run([base_python(), "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


# ------------------------------------------------------------ the parts

_PURPOSE = {
    Tool.UV: "Installs the Python packages.",
    Tool.PYTHON: "The agents, the command line and the tests.",
    Tool.GO: "Builds CometBFT; not needed once that is there.",
    Tool.COMETBFT: "The consensus engine beside each agent.",
    Tool.NODE: "Runs npm, and the Solidity compiler in the contracts' tests.",
    Tool.EVM: "The local EVM chain and the contracts' tools.",
    Tool.MODEL_ENV: "Serves the models.",
    Tool.MODELS: "The two small models of the demo.",
}

# A tool whose only use is to make another part.
_SERVES = {Tool.UV: Tool.PYTHON, Tool.GO: Tool.COMETBFT}


def _part(site: Site, tool: Tool, *, thorough: bool) -> Finding:
    meaning, fix = _PURPOSE[tool], f"./quorate setup --only {tool}"
    if not _is_recipe_there(site, tool):
        return Finding(
            tool,
            "bad",
            "its recipe is missing below third_party/",
            meaning,
            "The checkout is not complete: `git status` shows what it lacks.",
        )
    this = part(site, tool)
    if (
        tool in (Tool.UV, Tool.GO, Tool.NODE)
        and (program := site.program(tool))
        and not program.is_relative_to(site.cache.root)
    ):
        version = ".".join(map(str, version_of(program, "version" if tool is Tool.GO else "--version")))
        return Finding(tool, "ok", f"the system's {program} {version}", meaning)
    condition = site.cache.condition(this.entry, thorough=thorough)
    if condition.is_ready:
        return Finding(tool, "ok", f"{this.label} in the cache", meaning)
    if condition.fault:
        return Finding(tool, "missing", f"{this.label} is damaged: {condition.fault}", meaning, f"{fix} makes it anew")
    if _is_there_or_not_needed(site, tool):
        return Finding(tool, "ok", f"not there, and not needed: {_SERVES[tool]} is made", meaning)
    older = _older_on_system(site, tool)
    return Finding(
        tool,
        "missing",
        f"{this.label}{older}",
        f"{meaning} {in_bytes(this.fetch)} to fetch, {in_bytes(this.disk)} on disk.",
        fix,
    )


def _is_there_or_not_needed(site: Site, tool: Tool) -> bool:
    """Whether a tool that makes another part is on the system, or that part is already made."""
    served = _SERVES.get(tool)
    return site.program(tool) is not None or (
        served is not None and site.cache.condition(part(site, served).entry).is_ready
    )


def _older_on_system(site: Site, tool: Tool) -> str:
    found = shutil.which(tool, path=site.environment.get("PATH")) if tool in (Tool.UV, Tool.GO, Tool.NODE) else None
    if not found:
        return ""
    needed = ".".join(map(str, needed_version(site, tool)))
    return f" (the system's {found} is older than {needed}{', or npm is missing' if tool is Tool.NODE else ''})"


def _is_recipe_there(site: Site, tool: Tool) -> bool:
    try:
        part(site, tool)
    except QuorateError:
        return False
    return True


def _links(site: Site) -> Finding:
    meaning = "Editors and forge find the packages by the links .venv and third_party/evm/node_modules."
    own = [
        name
        for name in (".venv", "third_party/evm/node_modules")
        if (site.root / name).exists() and not (site.root / name).is_symlink()
    ]
    if own:
        return Finding(
            "links",
            "note",
            f"{' and '.join(own)}: a folder of your own, left alone",
            meaning,
            "Remove it if it is not wanted; set-up then links the cached one.",
        )
    return Finding("links", "ok", "no folder of yours is in the way", meaning)


def _localnets(site: Site) -> Finding:
    meaning = "A run that is still going keeps its memory and ports; several may run side by side."
    running = _processes_with("QUORATE_MARKS")
    if running:
        return Finding(
            "running localnets",
            "note",
            f"{len(running)} processes of a run are alive (ids {', '.join(map(str, running[:8]))})",
            meaning,
            "End a run with Ctrl-C in its terminal.",
        )
    return Finding("running localnets", "ok", "none", meaning)


def _processes_with(variable: str) -> list[int]:
    """The processes of this user whose environment has `variable`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # another user's, or it has ended
            if entry.name.isdigit() and f"{variable}=".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def _old_parts(site: Site) -> Finding:
    meaning = "Parts that this checkout's locks no longer name (another checkout may still use them)."
    current = {part(site, tool).entry.name for tool in Tool if _is_recipe_there(site, tool)} | {"logs", "locks", "tmp"}
    old = (
        [p for p in site.cache.root.iterdir() if p.name not in current and p.is_dir()]
        if site.cache.root.is_dir()
        else []
    )
    if not old:
        return Finding("old parts", "ok", "none", meaning)
    total = in_bytes(sum(size_of(p) for p in old))
    return Finding(
        "old parts",
        "note",
        f"{len(old)} folders, {total} or less (links to uv's cache count, too)",
        meaning,
        "rm -rf " + " ".join(str(p) for p in old[:6]),
    )


def _cpu_flags() -> frozenset[str]:
    """What the first processor can do, by the kernel's names; empty where the kernel does not say (aarch64)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.split())
    return frozenset()
