"""The README's first command, as a user runs it: the whole product in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from quorate.model import Receipt, SignedReceipt
from quorate.signatures import keccak

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "proposal_id", "governor", "safe", "support", "reason", "rationale_hash", "vote_tx", "vote_gas", "agents",
    "operators", "rounds", "seconds", "executed",
}  # fmt: skip


def test_the_demo_votes_and_enacts_can_be_looked_at_and_leaves_nothing() -> None:
    mark = f"test_demo={os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "quorate.cli", "demo", "--json", "--keep"]
    environment = {**os.environ, "QUORATE_TEST_MARK": mark}
    demo = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        told = json.loads(demo.stdout.readline())
        assert told.keys() >= KEYS
        assert told["executed"] is True
        assert (told["support"], told["choice"]) == (1, "FOR")
        assert (len(told["agents"]), len(told["operators"])) == (4, 2)

        rationale = Path(told["rationale_file"]).read_bytes()
        assert "0x" + keccak(rationale).hex() == told["rationale_hash"]
        assert told["rationale_hash"] in told["reason"]
        judgements = json.loads(rationale)["judgements"]
        assert set(judgements) <= set(told["agents"])
        assert len(judgements) >= 3
        assert {one["operator"] for one in judgements.values()} <= set(told["operators"])
        assert json.loads(rationale)["weights_bps"]["language model"] == 0

        evidence = Path(told["logs"]) / "evidence"
        for judgement in judgements.values():  # each receipt was kept, and is signed by the operator that is named
            kept = json.loads(next(evidence.glob(f"*/receipt-{judgement['receipt']}.json")).read_text())
            signed = SignedReceipt(Receipt(**kept["receipt"]), bytes.fromhex(kept["signature"][2:]))
            assert signed.signer == judgement["operator"] == signed.receipt.operator
            assert "0x" + signed.receipt.digest().hex() == judgement["receipt"]

        receipt = _ask(told["chain_url"], "eth_getTransactionReceipt", told["vote_tx"])  # --keep: the chain answers
        assert (int(receipt["status"], 16), int(receipt["gasUsed"], 16)) == (1, told["vote_gas"])
    finally:
        demo.send_signal(signal.SIGINT)
        code = demo.wait(60)
    assert code == 130
    assert _processes_with(mark) == []


def _ask(url: str, method: str, *params: str) -> dict[str, str]:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  (our own anvil)
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        result: dict[str, str] = json.load(response)["result"]
    return result


def _processes_with(mark: str) -> list[str]:
    """Command lines of what still runs with our mark in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found
