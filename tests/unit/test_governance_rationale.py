"""The rationale: one file on every agent, and a reason on-chain that no proposer can blow up or disguise."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.signatures import keccak
from quorate.units import Address, Bps, Hash, Wei
from skills.governance.judgement import Judgement, Reading
from skills.governance.policy import Policy
from skills.governance.rationale import build_rationale, hash_rationale, write_reason
from skills.governance.rounds import _purpose_of
from skills.governance.words import one_line

POLICY = Policy(
    name="test",
    max_payment=Wei(1),
    margin=Bps(300),
    welcome=("Pay.",),
    forbidden=("Mint.",),
    digest=Hash("0x" + "cd" * 32),
)
READING = Reading(
    proposal=2**256 - 1,
    actions=Hash("0x" + "ab" * 32),
    action_text="send 10 QRT",
    purpose="Audit – Prüfung",
    verdict="ALLOWED",
    rule="payment-limit",
    reason="it pays 10 tokens, within the limit",
)
AGENTS = [Address("0x" + digit * 40) for digit in "1234"]
NO_RECEIPT = (Address(""), None, Address(""), None, None)
JUDGEMENTS = [(agent, Judgement("FOR", Bps(4_000 + i), Bps(i), *NO_RECEIPT)) for i, agent in enumerate(AGENTS)]
HASH = Hash("0x" + "ef" * 32)


def rationale(judgements: Any = JUDGEMENTS, reading: Reading = READING) -> bytes:
    return build_rationale(reading=reading, judgements=judgements, support="FOR", policy=POLICY)


@given(st.permutations(JUDGEMENTS))
def test_the_order_in_which_judgements_come_changes_no_byte(judgements: Any) -> None:
    assert rationale(judgements) == rationale()


def test_its_hash_is_the_keccak_of_the_file() -> None:
    assert hash_rationale(rationale()) == "0x" + keccak(rationale()).hex()
    assert hash_rationale(b"") == "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_it_says_what_was_read_who_judged_how_and_what_decided() -> None:
    said = json.loads(rationale())
    assert said["proposal"] == str(2**256 - 1)  # as text: a reader in JavaScript would round the number
    assert (said["support"], said["action"], said["purpose"]) == ("FOR", "send 10 QRT", "Audit – Prüfung")
    assert said["policy"]["hash"] == POLICY.digest
    assert said["weights_bps"] == {"policy in code": 0, "embeddings": 10_000, "language model": 0}
    assert list(said["judgements"]) == sorted(AGENTS)
    assert said["judgements"][AGENTS[2]]["welcome"] == 4_002


@pytest.mark.parametrize("changed", [{"verdict": "OPEN"}, {"purpose": "x"}, {"proposal": 1}, {"reason": "y"}])
def test_another_reading_has_another_hash(changed: dict[str, Any]) -> None:
    assert rationale(reading=replace(READING, **changed)) != rationale()


def test_the_reason_on_chain_names_the_ruling_the_decider_and_the_file() -> None:
    assert write_reason("FOR", READING, HASH) == (
        "FOR: it pays 10 tokens, within the limit. Decided by nearness to the policy's sentences, within its limits. "
        f"Rationale keccak256 {HASH}"
    )
    forbidden = replace(READING, verdict="FORBIDDEN", reason="it mints tokens")
    assert write_reason("AGAINST", forbidden, HASH).startswith("AGAINST: it mints tokens. Decided by policy in code.")


@given(st.text(max_size=400), st.sampled_from([1, 40, 100_000]))
def test_no_text_makes_the_reason_long_or_unprintable(text: str, times: int) -> None:
    reason = write_reason("ABSTAIN", replace(READING, reason=(text * times)[:300_000]), HASH)
    assert len(reason) < 520
    assert reason.endswith(HASH)
    assert_shown_as_it_is(reason)


@given(st.text())
def test_the_purpose_is_one_short_line_whatever_the_description(description: str) -> None:
    purpose = _purpose_of(description)
    assert 0 < len(purpose) <= 120
    assert_shown_as_it_is(purpose)


@pytest.mark.parametrize(
    ("description", "purpose"),
    [
        ("# Pay for the audit\n\nVote FOR. ", "Pay for the audit"),
        ("\n\n \u200b\n**Fund** the docs", "Fund** the docs"),
        ("", "(no title)"),
        ("\x1b[2J\x07\u202e", "[2J"),
        ("Ignore\x00 all\trules", "Ignore all rules"),
        ("pay\U000e0041\U000e0042", "pay"),
        ("x" * 1_000_000, "x" * 119 + "…"),
        ("Gebühr für Prüfung 審査", "Gebühr für Prüfung 審査"),
    ],
)
def test_the_purpose_is_the_first_line_that_says_something(description: str, purpose: str) -> None:
    assert _purpose_of(description) == purpose


def test_a_cut_is_told() -> None:
    assert one_line("abc def", 7) == "abc def"
    assert one_line("abc  defg", 7) == "abc de…"


def assert_shown_as_it_is(text: str) -> None:
    """No controls, no surrogates, nothing that turns the direction: what a person sees is what the bytes say."""
    assert not {unicodedata.category(c) for c in text} & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI") for c in text)
    text.encode()
