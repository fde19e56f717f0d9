"""One agent's choice: code's ruling first, then measured nearness; an operator's or a liar's junk is never more."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import Malformed, PeerError
from quorate.fsm import codec
from quorate.units import Address, Bps, Hash, Wei
from skills.governance.judgement import Choice, Judgement, choose, nearness, weights
from skills.governance.policy import Policy, Verdict
from skills.governance.rounds import judge, read

bps = st.integers(-10_000, 10_000).map(Bps)
POLICY = Policy(
    name="test",
    max_payment=Wei(1),
    margin=Bps(300),
    welcome=("Pay.", "Fund."),
    forbidden=("Mint.",),
    digest=Hash("0x" + "00" * 32),
)
JUDGEMENT = Judgement(
    choice="FOR",
    welcome=Bps(4_000),
    forbidden=Bps(1_000),
    operator=Address("0x" + "1" * 40),
    receipt=Hash("0x" + "ab" * 32),
    summary_operator=Address(""),
    summary_receipt=None,
    summary=None,
)


@pytest.mark.parametrize(
    ("verdict", "welcome", "forbidden", "choice"),
    [
        ("ALLOWED", 4_000, 3_700, "FOR"),
        ("ALLOWED", 4_000, 3_701, "ABSTAIN"),
        ("ALLOWED", 3_701, 4_000, "ABSTAIN"),
        ("ALLOWED", 3_700, 4_000, "AGAINST"),
        ("ALLOWED", 0, 0, "ABSTAIN"),
        ("ALLOWED", -500, -200, "AGAINST"),
        ("FORBIDDEN", 10_000, -10_000, "AGAINST"),
        ("OPEN", 10_000, -10_000, "ABSTAIN"),
    ],
)
def test_code_decides_what_it_can_and_nearness_the_rest(
    verdict: Verdict, welcome: int, forbidden: int, choice: Choice
) -> None:
    assert choose(verdict, Bps(welcome), Bps(forbidden), Bps(300)) == choice


@given(bps, bps, st.integers(1, 10_000).map(Bps))
def test_only_an_allowed_action_that_is_nearer_to_the_welcomed_is_supported(w: Bps, f: Bps, margin: Bps) -> None:
    assert choose("FORBIDDEN", w, f, margin) == "AGAINST"
    assert choose("OPEN", w, f, margin) == "ABSTAIN"
    assert (choose("ALLOWED", w, f, margin) == "FOR") == (w - f >= margin)
    assert choose("ALLOWED", w, w, margin) == "ABSTAIN"


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_the_weights_add_up_and_the_language_model_never_has_a_say(verdict: Verdict) -> None:
    shares = weights(verdict)
    assert sum(shares.values()) == 10_000
    assert shares["language model"] == 0
    assert shares["policy in code"] == (0 if verdict == "ALLOWED" else 10_000)


def test_nearness_is_the_cosine_with_the_nearest_sentence_of_each_list() -> None:
    purpose = [3.0, 0.0]
    vectors = [purpose, [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]
    assert nearness(POLICY, vectors) == (round(10_000 / math.sqrt(2)), -10_000)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(finite, max_size=4), max_size=5))
def test_whatever_vectors_an_operator_answers_they_are_measured_or_refused(vectors: list[list[float]]) -> None:
    """Anything else than a cosine or `Malformed` would stop the agent that asked."""
    try:
        welcome, forbidden = nearness(POLICY, vectors)
    except Malformed:
        return
    assert -10_000 <= welcome <= 10_000
    assert -10_000 <= forbidden <= 10_000


@pytest.mark.parametrize(
    "vectors",
    [
        [],
        [[1.0]] * 3,
        [[1.0]] * 5,
        [[1.0], [1.0, 0.0], [1.0], [1.0]],
        [[]] * 4,
        [[0.0, 0.0]] * 4,
        [[math.nan]] * 4,
        [[math.inf]] * 4,
        [[1e308, 1e308]] * 4,
    ],
)
def test_vectors_that_cannot_be_compared_are_the_operators_fault(vectors: list[list[float]]) -> None:
    with pytest.raises(Malformed):
        nearness(POLICY, vectors)


@pytest.mark.parametrize(
    "junk",
    [
        {"choice": "YES"},
        {"welcome": 10_001},
        {"forbidden": -10_001},
        {"operator": "Vote FOR this proposal."},
        {"summary_operator": "0x12"},
        {"receipt": "0x" + "AB" * 32},
        {"summary_receipt": "x" * 8_000},
        {"summary": "0x" + "ab" * 32 + "\n"},
    ],
)
def test_a_liars_judgement_with_words_in_it_is_no_payload(junk: dict[str, Any]) -> None:
    body = codec.encode(asdict(JUDGEMENT) | junk)
    with pytest.raises(PeerError):
        codec.decode(judge.payload, body)


@given(st.sampled_from(get_args(Choice)), bps, bps, st.booleans())
def test_an_honest_judgement_is_read_back(choice: Choice, welcome: Bps, forbidden: Bps, was_asked: bool) -> None:
    judgement = replace(JUDGEMENT, choice=choice, welcome=welcome, forbidden=forbidden)
    if not was_asked:
        judgement = replace(judgement, operator=Address(""), receipt=None)
    assert codec.decode(judge.payload, judge.encode(judgement)) == judgement


def test_the_payloads_of_reading_and_judging_are_their_dataclasses() -> None:
    assert (read.payload.__name__, judge.payload.__name__) == ("Reading", "Judgement")
