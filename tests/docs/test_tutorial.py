"""docs/tutorial.md is run: its files are written, its commands executed, and what it shows is what they say.

A fenced block is what its language says: `sh` is run, `text` is what the commands before it have to say, a block after
`<!-- file: PATH -->` is written there. `<!-- with: FILE OLD->NEW fails -->`: the commands meet that change, and fail.
`<!-- integration ... -->` blocks need real processes, and are run by the test that is marked so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
COPIED = ("src/quorate", "services/hello_world", "agents/hello_world", "third_party")
PATIENCE_S = 30.0
QUORATE = f"""#!/bin/sh
cd "$(dirname "$0")" && PYTHONPATH="$PWD/src:$PWD" exec {shlex.quote(sys.executable)} -P -m quorate.cli "$@"
"""


@dataclass(frozen=True)
class Step:
    note: str
    language: str
    text: str

    @property
    def is_real(self) -> bool:
        """Whether it needs real processes."""
        return self.note.startswith("integration")


def steps() -> Iterator[Step]:
    for found in BLOCK.finditer((ROOT / "docs/tutorial.md").read_text()):
        yield Step(found["note"] or "", found["language"], found["text"])


class Checkout:
    """A copy of what a user has, in which the tutorial can write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said, self.commands = "", ""
        for name in COPIED:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("node_modules"))
        for name in ("tests", "skills"):
            (root / name).mkdir()
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "quorate").write_text(QUORATE)
        (root / "quorate").chmod(0o755)

    def follow(self, step: Step) -> None:
        """Do what a block says."""
        if step.note.startswith("file: "):
            path = self.root / step.note.removeprefix("file: ")
            assert path.parent.is_dir(), "the tutorial writes where nothing is"
            path.write_text(step.text)
        elif step.language == "sh":
            self.commands = step.text
            self.said = self._run_with(step) if step.note.startswith("with: ") else self.run(step.text)
        elif step.language == "text":
            for line in filter(None, step.text.splitlines()):
                assert line in self.said, f"{line!r} is not what the commands said:\n{self.said}"

    def follow_until_said(self, step: Step) -> None:
        """As `follow`; a reader of a running network looks again until it says so: agents catch up, or are missed."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and step.language == "text":
            if all(line in self.said for line in step.text.splitlines()):
                return
            time.sleep(0.5)
            self.said = self.run(self.commands)
        self.follow(step)

    def run(self, commands: str, *, fails: bool = False) -> str:
        said = ""
        for line in commands.splitlines():
            assert line.startswith("./quorate "), line
            done = subprocess.run(
                shlex.split(line), cwd=self.root, capture_output=True, text=True, check=False, timeout=120
            )
            said += done.stdout + done.stderr
            assert (done.returncode != 0) == fails, f"{line}:\n{said}"
        return said

    def _run_with(self, step: Step) -> str:
        file, change, _ = step.note.removeprefix("with: ").split(" ")
        path, (old, new) = self.root / file, change.split("->")
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        try:
            return self.run(step.text, fails=True)
        finally:
            path.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def real_steps(every: list[Step]) -> list[int]:
    """The blocks that need real processes, each with the `text` that says what its commands answer."""
    real = {number for number, step in enumerate(every) if step.is_real}
    return sorted(
        real
        | {number + 1 for number in real if every[number + 1 : number + 2] and every[number + 1].language == "text"}
    )


@pytest.mark.integration
@pytest.mark.needs("python")
def test_the_tutorial_works_as_it_stands(checkout: Checkout) -> None:
    every = list(steps())
    for number, step in enumerate(every):
        if number not in real_steps(every):
            checkout.follow(step)


@pytest.mark.integration
@pytest.mark.needs("cometbft")
def test_the_parts_of_the_tutorial_that_start_a_network_work_too(checkout: Checkout) -> None:
    every = list(steps())
    for step in every:
        if step.note.startswith("file: ") and step.note.endswith((".py", ".yaml")):
            if not (checkout.root / "services/price_feed").exists():
                checkout.run("./quorate new price_feed")
            checkout.follow(step)
    network: subprocess.Popen[str] | None = None
    try:
        for number in real_steps(every):
            step = every[number]
            if "starts the network" in step.note:
                command = [*shlex.split(step.text)]
                network = subprocess.Popen(command, cwd=checkout.root, stdout=subprocess.PIPE, text=True)
                assert network.stdout is not None
                assert any(re.search(r" pause +DONE", line) for line in iter(network.stdout.readline, ""))
                continue
            if "stops agent-3 and agent-4" in step.note:
                signal_agents(checkout, signal.SIGSTOP)
            elif "agent-3 and agent-4 go on" in step.note:
                signal_agents(checkout, signal.SIGCONT)
            checkout.follow_until_said(step)
        transcript = (checkout.root / "tests/transcripts/price_feed.jsonl").read_text()
        assert '"price":100000' in transcript, "the fourth agent saw 900000, and the median did not move"
    finally:
        if network is not None:
            network.send_signal(signal.SIGINT)
            network.communicate(timeout=60)


def signal_agents(checkout: Checkout, number: signal.Signals) -> None:
    agents = json.loads(checkout.run("./quorate status --json"))["agents"]
    for agent in agents[2:]:
        os.kill(agent["pid"], number)
