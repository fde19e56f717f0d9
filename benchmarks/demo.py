"""How long the demo takes and what it needs: set-up, from proposal to vote, each round, memory of each process.

`./quorate bench demo [--cold] [--json]`. Beside our own time stands the models' in the same run: what is left when
their loading and answers are taken out is ours. `--cold` also sets up in an empty cache (3.6 GB are fetched).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dao.demo import delegate_net, play
from quorate.errors import SetupError
from quorate.events import replay
from quorate.localnet import processes
from quorate.localnet.run_dir import RunDir
from quorate.localnet.stage import stage
from quorate.localnet.tools import Tool, Tools, toolbox

__all__ = ["measure", "render"]

_MIB = 1024 * 1024


def measure(root: Path, *, cold: bool) -> dict[str, Any]:
    """All figures of one run, by name; times in seconds, memory in MiB."""
    figures: dict[str, Any] = {"setup_cold_s": _cold_setup(root) if cold else None}
    began = time.monotonic()
    tools = toolbox([Tool.COMETBFT, Tool.EVM, Tool.MODEL_ENV, Tool.MODELS])
    figures["setup_warm_s"] = round(time.monotonic() - began, 2)
    return figures | processes.run(_run(root, tools))


async def _run(root: Path, tools: Tools) -> dict[str, Any]:
    began = time.monotonic()
    async with stage(root, "Quorate bench", to_stderr=True) as on:
        async with delegate_net(on, tools, root) as net:
            ready_s = time.monotonic() - began
            result = await play(on, net, began=began)
            memory = {
                name: round(sum(usage.resident_bytes for usage in used) / _MIB)
                for name, used in on.supervisor.usage().items()
            }
        rounds = {name: _spread(took) for name, took in on.story.round_ms.items()}
        models = _model_times(on.run)
    total_s = time.monotonic() - began
    return {
        "seconds": round(total_s, 1),
        "ready_s": round(ready_s, 1),
        "models_load_s": models["load_s"],
        "models_answer_s": models["answer_s"],
        "ours_s": round(total_s - models["load_s"] - models["answer_s"], 1),
        "proposal_to_vote_s": result.seconds_to_vote,
        "vote_gas": result.vote_gas,
        "rounds": result.rounds,
        "round_ms": rounds,
        "memory_mib": memory,
        "executed": result.executed,
    }


def _model_times(run: RunDir) -> dict[str, float]:
    """Wall time in which models were loading (from the first operator's start to the last one loaded) or answering."""
    events = sorted((e for path in run.events.glob("*.jsonl") for e in replay(path)), key=lambda event: event.t)
    operators = [event for event in events if event.who.startswith("operator")]
    began = min(event.t for event in operators if event.kind == "starting")
    load_s = max(event.t for event in operators if event.kind == "models") - began
    spans = [(event.t - event.get("ms", 0) / 1000, event.t) for event in events if event.kind == "model"]
    return {"load_s": round(load_s, 1), "answer_s": round(_covered(spans), 1)}


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of these intervals."""
    total, end = 0.0, float("-inf")
    for left, right in sorted(spans):
        total += max(0.0, right - max(left, end))
        end = max(end, right)
    return total


def _spread(took_ms: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(took_ms), 1), "max": round(max(took_ms), 1), "times": len(took_ms)}


def _cold_setup(root: Path) -> float:
    """Seconds that `./quorate setup` takes with an empty home."""
    with tempfile.TemporaryDirectory(prefix="quorate-cold-") as home:
        environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("QUORATE_")},
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
            "UV_CACHE_DIR": f"{home}/.cache/uv",
        }
        began = time.monotonic()
        done = subprocess.run([root / "quorate", "setup"], env=environment, check=False)
        if done.returncode:
            raise SetupError(f"./quorate setup ended with exit code {done.returncode} in an empty home")
        return round(time.monotonic() - began, 1)


def render(figures: Mapping[str, Any]) -> str:
    """The figures as a table for people."""
    lines = [f"{name:<20} {value}" for name, value in figures.items() if not isinstance(value, dict)]
    lines += [f"  {name:<20} {json.dumps(value)}" for name, value in figures["round_ms"].items()]
    lines += [f"  {name:<20} {mib:>6} MiB" for name, mib in figures["memory_mib"].items()]
    return "\n".join(lines)
