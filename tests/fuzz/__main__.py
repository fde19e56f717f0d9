"""`python -m tests.fuzz TARGET --seconds N [--seed S]`: fuzz one target, or `all` of them, `--jobs` at a time.

A crash is written to a file (made as small as it could be) and named with the command that shows it again; the exit
status is 1 then. `--keep` adds what found something new to the corpus of the repository: look at it before you commit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from subprocess import Popen

from tests.fuzz.engine import CORPUS, Report, Target, bound_memory, fuzz, kept
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60, help="how long each target runs (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the random numbers (default: from the clock)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time, with `all` (default: 1)")
    parser.add_argument("--replay", type=Path, help="run this one input and show what it does")
    parser.add_argument("--keep", action="store_true", help="add the new entries to tests/fuzz/corpus")
    asked = parser.parse_args()
    seed = time.time_ns() % 2**32 if asked.seed is None else asked.seed
    if asked.target == "all":
        return _all(asked.seconds, seed, max(1, asked.jobs), asked.keep)
    target = TARGETS[asked.target]()
    if asked.replay is not None:
        print(f"{target.name}: {target.run(asked.replay.read_bytes())}")
        return 0
    bound_memory()
    report = fuzz(target, seconds=asked.seconds, seed=seed, is_guarded=True, say=lambda line: print(line, flush=True))
    print(told(report), flush=True)
    if asked.keep and report.crash is None:
        print(f"{target.name}: {_keep(target, report)} entries were added to {CORPUS / target.name}.jsonl")
    target.close()
    return 1 if report.crash else 0


def told(report: Report) -> str:
    """The report in a few lines; a crash with its file, its trace and how to see it again."""
    rate = report.runs / max(report.seconds, 1e-9)
    line = (
        f"{report.target}: {report.runs:,} runs in {report.seconds:.0f} s ({rate:,.0f}/s), {len(report.labels)} kinds "
        f"of answer, {len(report.news)} new entries, memory grew by {report.grown_bytes >> 20} MiB, seed {report.seed}"
    )
    if report.crash is None:
        return line
    with tempfile.NamedTemporaryFile(prefix=f"quorate-fuzz-{report.target}-", delete=False) as file:
        file.write(report.crash.data)
    trace = "".join(traceback.format_exception(report.crash.error))
    replay = f"python -m tests.fuzz {report.target} --replay {file.name}"
    return f"{line}\n{trace}CRASH with {len(report.crash.data)} bytes; to see it again: {replay}"


def _keep(target: Target, report: Report) -> int:
    """Write the entries that are small and of a kind of answer that the corpus does not give yet."""
    known = {target.run(data) for data in (*target.seeds(), *kept(target.name))}
    lines = []
    for data in sorted(report.news, key=len):
        if len(data) <= 1_000 and (label := target.run(data)) not in known:
            known.add(label)
            lines.append(json.dumps(data.decode("latin-1")) + "\n")
    with (CORPUS / f"{target.name}.jsonl").open("a", encoding="ascii") as file:
        file.writelines(lines)
    return len(lines)


def _all(seconds: float, seed: int, jobs: int, keep: bool) -> int:
    """Each target in a process of its own; returns how many crashed."""
    waiting, failed = list(TARGETS), 0
    running: list[Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            command = [sys.executable, "-m", "tests.fuzz", waiting.pop(0), f"--seconds={seconds}", f"--seed={seed}"]
            running.append(Popen([*command, "--keep"] if keep else command))
        time.sleep(0.2)
        failed += sum(process.poll() not in (None, 0) for process in running)
        running = [process for process in running if process.poll() is None]
    print(f"{len(TARGETS) - failed} of {len(TARGETS)} targets ran without a crash")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
