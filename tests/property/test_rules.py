"""What each rule states about liars, for all n, honest values and lies; and controls in which the bound breaks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from quorate import (
    Address,
    Hash,
    State,
    Votes,
    first_valid,
    median,
    rotating_keeper,
    same,
    trimmed_mean,
    until_deadline,
    weighted,
)
from quorate.fsm import Ready, quorum_of
from quorate.rounds import sealed
from quorate.rounds.sealed import commitment_to

NAMES = tuple(Address(f"0x{i:02}") for i in range(10))
numbers = st.integers(-(1 << 256), 1 << 256)


@dataclass(frozen=True)
class Poll(State):
    keeper: Address = Address("")
    blamed: tuple[Address, ...] = ()
    number: int = 0
    word: str | None = None
    words: tuple[tuple[Address, str], ...] = ()
    weights: tuple[tuple[Address, int], ...] = ()
    forecasts: tuple[tuple[Address, int], ...] = ()
    commitments: tuple[tuple[Address, Hash], ...] = ()
    unrevealed: tuple[Address, ...] = ()


@st.composite
def crowds(draw: st.DrawFn, extra_liars: int = 0) -> tuple[int, dict[Address, int], dict[Address, int]]:
    """n, what some honest agents sent, and what up to f (and some more) liars sent; together at least a quorum."""
    n = draw(st.integers(1, 10))
    liars = min(n, draw(st.integers(0, (n - 1) // 3)) + extra_liars)
    who = draw(st.permutations(NAMES[:n]))
    honest_count = draw(st.integers(max(0, quorum_of(n) - liars), n - liars))
    lies = {name: draw(numbers) for name in who[:liars]}
    honest = {name: draw(numbers) for name in who[liars : liars + honest_count]}
    return n, honest, lies


def settle(rule: Ready, case: tuple[int, dict[Address, int], dict[Address, int]]) -> int:
    n, honest, lies = case
    outcome = rule(Poll(), Votes.of({**honest, **lies}.items(), n=n))
    assert outcome is not None
    return int(outcome.state.number)


@pytest.mark.parametrize("rule", [median("number"), trimmed_mean("number")], ids=["median", "trimmed mean"])
@given(case=crowds())
def test_fewer_than_a_third_of_liars_cannot_leave_the_honest_range(rule: Ready, case: Any) -> None:
    _, honest, _ = case
    assert min(honest.values()) <= settle(rule, case) <= max(honest.values())


@pytest.mark.parametrize("rule", [median("number"), trimmed_mean("number")], ids=["median", "trimmed mean"])
def test_one_liar_more_can(rule: Ready) -> None:
    """The control: the bound above is no accident of how the cases are drawn."""

    def escapes(case: Any) -> bool:
        _, honest, _ = case
        return bool(honest) and not min(honest.values()) <= settle(rule, case) <= max(honest.values())

    case = find(crowds(extra_liars=1), escapes)
    assert len(case[2]) > (case[0] - 1) // 3


def test_a_plain_mean_would_leave_it_with_one_liar() -> None:
    """The control for the trimming itself."""

    def escapes(case: Any) -> bool:
        _, honest, lies = case
        sent = [*honest.values(), *lies.values()]
        return not min(honest.values()) <= sum(sent) // len(sent) <= max(honest.values())

    assert find(crowds(), escapes)


@given(case=crowds(), data=st.data())
def test_the_median_is_a_value_that_somebody_sent(case: Any, data: st.DataObject) -> None:
    _, honest, lies = case
    assert settle(median("number"), case) in [*honest.values(), *lies.values()]


@given(st.integers(1, 10), st.data())
def test_less_than_a_third_of_the_weight_decides_nothing_alone(n: int, data: st.DataObject) -> None:
    table = {name: data.draw(st.integers(0, 1000)) for name in NAMES[:n]}
    liars = data.draw(st.sets(st.sampled_from(NAMES[:n])))
    honest = data.draw(st.dictionaries(st.sampled_from(NAMES[:n]), st.sampled_from("xy")))
    sent = {**honest, **dict.fromkeys(liars, "lie")}
    state = Poll(weights=tuple(table.items()))
    outcome = weighted("word")(state, Votes.of(sent.items(), n=n))
    heavy = 3 * sum(table[name] for name in liars) > 2 * sum(table.values())
    if outcome is not None and outcome.event == "DONE":
        assert (outcome.state.word == "lie") == heavy
        assert 3 * sum(table[name] for name, word in sent.items() if word == outcome.state.word) > 2 * sum(
            table.values()
        )


@given(st.integers(1, 10), st.data())
def test_equal_weights_decide_as_heads_do(n: int, data: st.DataObject) -> None:
    sent = data.draw(st.dictionaries(st.sampled_from(NAMES[:n]), st.sampled_from(["x", "y", None])))
    votes = Votes.of(sent.items(), n=n)
    state = Poll(weights=tuple((name, 1) for name in NAMES[:n]))
    assert weighted("word", none="NONE")(state, votes) == same("word", none="NONE")(state, votes)


@given(st.integers(1, 10), st.data())
def test_a_decision_by_weight_never_changes_by_waiting(n: int, data: st.DataObject) -> None:
    state = Poll(weights=tuple((name, data.draw(st.integers(0, 9))) for name in NAMES[:n]))
    pairs = [(name, data.draw(st.sampled_from("xy"))) for name in data.draw(st.permutations(NAMES[:n]))]
    ends = [weighted("word")(state, Votes.of(pairs[:k], n=n)) for k in range(n + 1)]
    first = next((k for k, end in enumerate(ends) if end is not None), n)
    assert all(end == ends[first] for end in ends[first:])


@given(st.integers(1, 10), st.data())
def test_until_the_deadline_nothing_that_came_is_lost(n: int, data: st.DataObject) -> None:
    sent = data.draw(st.dictionaries(st.sampled_from(NAMES[:n]), st.text(max_size=3)))
    votes, rule = Votes.of(sent.items(), n=n), until_deadline("words")
    outcome = rule(Poll(), votes) or (rule.at_deadline and rule.at_deadline(Poll(), votes))
    assert (outcome is not None) == (len(sent) >= quorum_of(n))
    if outcome:
        assert dict(outcome.state.words) == sent


@given(st.integers(1, 10), st.data())
def test_only_what_is_valid_is_ever_taken(n: int, data: st.DataObject) -> None:
    sent = data.draw(st.dictionaries(st.sampled_from(NAMES[:n]), st.integers(0, 5)))
    outcome = first_valid("number", lambda state, number: number > 3)(Poll(), Votes.of(sent.items(), n=n))
    if any(number > 3 for number in sent.values()):
        assert outcome is not None
        assert outcome.state.number > 3
    else:
        assert (outcome is not None and outcome.event == "NONE") == (len(sent) == n)


@given(st.integers(1, 10), st.data())
def test_f_liars_cannot_blame_a_keeper_away_and_honest_agents_can(n: int, data: st.DataObject) -> None:
    keeper, f = data.draw(st.sampled_from(NAMES[:n])), (n - 1) // 3
    others = [name for name in data.draw(st.permutations(NAMES[:n])) if name != keeper]
    complaints = data.draw(st.integers(0, len(others)))
    state = Poll(participants=NAMES[:n], keeper=keeper)
    votes = Votes.of([(name, None) for name in others[:complaints]], n=n)
    outcome = rotating_keeper("word")(state, votes)
    assert (outcome is not None) == (complaints > f)
    if outcome is not None:
        assert outcome.state.keeper != keeper
        assert outcome.state.blamed == (keeper,)


@given(st.integers(1, 10), st.data())
def test_every_participant_is_keeper_once_before_none_is_left(n: int, data: st.DataObject) -> None:
    rule = rotating_keeper("word")
    state, seen = Poll(participants=NAMES[:n], keeper=data.draw(st.sampled_from(NAMES[:n]))), []
    events = []
    for _ in range(n):
        seen.append(state.keeper)
        assert rule.at_deadline is not None
        outcome = rule.at_deadline(state, Votes.of((), n=n))
        assert outcome is not None
        state = outcome.state
        events.append(outcome.event)
    assert sorted(seen) == list(NAMES[:n])
    assert (events, sorted(state.blamed)) == (["ROTATE"] * (n - 1) + ["NO_KEEPER"], list(NAMES[:n]))


@sealed("forecasts")
async def forecast(ctx: Any, state: Poll) -> int:
    """What the properties below never run."""
    return 0


def opened_by(n: int, honest: dict[Address, int], lies: dict[Address, Any], copied: dict[Address, Hash]) -> Any:
    """The reveal round's outcome: honest agents reveal what they committed to, liars send what they like."""
    mine = {who: commitment_to("ForecastRound", 0, who, f"salt {who}", value) for who, value in honest.items()}
    state = Poll(commitments=tuple(sorted({**mine, **copied}.items())))
    sent: dict[Address, Any] = {**{who: (f"salt {who}", value) for who, value in honest.items()}, **lies}
    return forecast.reveal.at_deadline(state, Votes.of(sent.items(), n=n))


@given(crowds(), st.data())
def test_a_copied_commitment_opens_for_nobody_and_its_copier_is_named(case: Any, data: st.DataObject) -> None:
    n, honest, lies = case
    victims = {liar: data.draw(st.sampled_from(sorted(honest))) for liar in lies}
    copied = {
        liar: commitment_to("ForecastRound", 0, victim, f"salt {victim}", honest[victim])
        for liar, victim in victims.items()
    }
    outcome = opened_by(n, honest, {liar: (f"salt {victims[liar]}", honest[victims[liar]]) for liar in lies}, copied)
    assert outcome.event == "DONE"
    assert dict(outcome.state.forecasts) == honest
    assert set(outcome.state.unrevealed) == set(lies)


@given(crowds(), st.data())
def test_withholding_never_gives_liars_the_majority_of_what_is_revealed(case: Any, data: st.DataObject) -> None:
    """f liars commit honestly and choose late whether to reveal: the median stays between honest values."""
    n, honest, lies = case
    copied = {who: commitment_to("ForecastRound", 0, who, "s", value) for who, value in lies.items()}
    chosen = {who: ("s", value) for who, value in lies.items() if data.draw(st.booleans())}
    outcome = opened_by(n, honest, chosen, copied)
    values = sorted(value for _, value in outcome.state.forecasts)
    assert min(honest.values()) <= values[(len(values) - 1) // 2] <= max(honest.values())
    assert set(outcome.state.unrevealed) == set(lies) - set(chosen)


def test_without_the_sender_in_it_a_commitment_could_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where everybody's commitment to a value is the same, the copier's reveal counts."""
    module = importlib.import_module("quorate.rounds.sealed")
    monkeypatch.setattr(module, "commitment_to", lambda name, period, sender, salt, value: f"{salt} {value}")
    a, b, c, copier = NAMES[:4]
    state = Poll(commitments=tuple((who, Hash("salt 7")) for who in (a, b, c, copier)))
    outcome = forecast.reveal.settle(state, Votes.of([(who, ("salt", 7)) for who in (a, b, c, copier)]))
    assert outcome is not None
    assert dict(outcome.state.forecasts)[copier] == 7


def test_the_state_is_never_changed_in_place() -> None:
    state = Poll(participants=NAMES[:4], keeper=NAMES[0])
    before = replace(state)
    rotating_keeper("word")(state, Votes.of([(name, None) for name in NAMES[:4]]))
    assert state == before
