from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from quorate.errors import ChainError, ServiceError
from quorate.fsm import Period, Service, Votes, agree
from quorate.offences import Offence, Offences, taken_back
from quorate.rounds import pause, register, same
from quorate.rounds.settle import (
    MAX_AHEAD,
    MAX_UNSETTLED,
    NO_OWNER,
    REFUSED,
    Intent,
    KeeperSilence,
    Report,
    SafeSignature,
    Settled,
    Settlement,
    Settling,
    ahead,
    collect,
    confirm,
    in_flight,
    intend,
    keep_report,
    keep_review,
    keep_settlement,
    keep_signatures,
    middle_block,
    review,
    see_it_mined,
    send,
    sign,
    transitions,
    with_intent,
)
from quorate.units import Address, Call, Hash, Height, PeriodNumber, RoundNumber, Wei

ACCOUNTS = sorted((Account.from_key(bytes([n]) * 32) for n in range(1, 5)), key=lambda account: account.address)
AGENTS = [Address(account.address) for account in ACCOUNTS]
DIGEST = Hash("0x" + "ab" * 32)
INTENT = Intent((Call(AGENTS[0], Wei(0), "0x"),), 3, block=50)
OTHER = Intent((Call(AGENTS[1], Wei(0), "0x"),), 3, block=60)
CANCEL = Intent((), 3, block=50)
MINED = Settlement(0, Hash("0x" + "cd" * 32), 7, 80_000, True, AGENTS[2], DIGEST)
STATE = with_intent(Settling(participants=tuple(AGENTS), period=2), INTENT)


def signed(index: int, digest: str = DIGEST, by: int | None = None) -> tuple[Address, SafeSignature]:
    signer = ACCOUNTS[index if by is None else by]
    signature = signer.unsafe_sign_hash(bytes.fromhex(digest[2:])).signature
    return AGENTS[index], SafeSignature(Hash(digest), "0x" + bytes(signature).hex())


SENDING = replace(STATE, keeper=AGENTS[2], signatures=tuple(signed(n) for n in range(3)))


def votes(*pairs: tuple[Address, Any]) -> Votes[Any]:
    return Votes.of(pairs, n=4, quorum=3)


def all_say(payload: Any, count: int = 3) -> Votes[Any]:
    return votes(*((agent, payload) for agent in AGENTS[:count]))


# ---- sign


def test_a_quorum_of_valid_signatures_is_kept_and_names_a_keeper() -> None:
    outcome = keep_signatures(STATE, votes(signed(0), signed(2), signed(3)))
    assert outcome is not None
    assert outcome.event == "DONE"
    assert [who for who, _ in outcome.state.signatures] == [AGENTS[0], AGENTS[2], AGENTS[3]]
    assert outcome.state.keeper == AGENTS[2]


def test_no_more_signatures_are_kept_than_the_safe_needs() -> None:
    outcome = keep_signatures(STATE, votes(*(signed(n) for n in range(4))))
    assert outcome is not None
    assert len(outcome.state.signatures) == 3


def test_a_signature_that_is_not_its_senders_counts_for_nothing() -> None:
    assert keep_signatures(STATE, votes(signed(0), signed(1), signed(2, by=1))) is None
    outcome = keep_signatures(STATE, votes(signed(0), signed(1), signed(2, by=1), signed(3)))
    assert outcome is not None
    assert AGENTS[2] not in dict(outcome.state.signatures)


@given(st.text(max_size=140))
def test_a_liars_junk_neither_counts_nor_breaks_the_round(junk: str) -> None:
    liar = (AGENTS[1], SafeSignature(DIGEST, junk))
    assert keep_signatures(STATE, votes(signed(0), liar, signed(2))) is None


def test_two_liars_with_another_transaction_end_the_round_without_a_majority() -> None:
    other = "0x" + "ef" * 32
    outcome = keep_signatures(STATE, votes(signed(0), signed(1), signed(2, other), signed(3, other)))
    assert outcome is not None
    assert (outcome.event, outcome.state.signatures) == ("NO_MAJORITY", ())


def test_when_two_of_four_refuse_the_intent_is_not_signed_and_stays_unsettled() -> None:
    outcome = keep_signatures(STATE, votes(signed(0), (AGENTS[1], REFUSED), (AGENTS[2], REFUSED)))
    assert outcome is not None
    assert outcome.event == "NO_MAJORITY"
    assert outcome.state.next_period().unsettled == (INTENT,)


def test_what_a_reorg_took_away_and_fails_now_is_wanted_no_more_and_a_no_op_is() -> None:
    restored = replace(STATE, used=INTENT.nonce, reached=INTENT.nonce + 1)
    refusing = votes(signed(0), (AGENTS[1], REFUSED), (AGENTS[2], REFUSED))
    outcome = keep_signatures(restored, refusing)
    assert outcome is not None
    assert (outcome.event, outcome.state.unsettled) == ("NO_MAJORITY", (INTENT, CANCEL))
    split = votes(signed(0), signed(1), signed(2, "0x" + "ef" * 32), (AGENTS[3], REFUSED))
    assert (keep_signatures(restored, split) or fail()).state.unsettled == (INTENT,)


# ---- intents


def test_the_block_of_an_intent_is_not_part_of_what_it_is() -> None:
    assert replace(INTENT, block=9) == INTENT
    assert with_intent(STATE, replace(INTENT, block=9)).unsettled == (INTENT,)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=2), st.integers(0, 2**64))
def test_a_liar_cannot_move_the_block_out_of_the_honest_range(honest: list[int], lie: int) -> None:
    block = middle_block(Intent((), 0, block) for block in (*honest, lie))
    assert min(honest) <= block <= max(honest)


class ScriptedSettler:
    def __init__(self, mined_after: int = 0, final_after: int = 0, succeeds: bool = True) -> None:
        self.asked, self.asked_final, self.pushed, self.mined_after = 0, 0, 0, mined_after
        self.final_after, self.succeeds, self.vanishes_at, self.owns = final_after, succeeds, 10**9, True
        self.simulated: list[int | None] = []

    async def next_nonce(self) -> tuple[int, int]:
        return 9, 77

    async def newest(self) -> tuple[int, int]:
        return INTENT.nonce + (await self.outcome(()) is not None), 77

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        self.simulated.append(block)
        return self.succeeds

    async def sign(self, intent: Intent) -> SafeSignature:
        return signed(0)[1]

    async def is_owner(self) -> bool:
        return self.owns

    async def push(self, intent: Intent, signatures: Any) -> None:
        self.pushed += 1

    async def outcome(self, unsettled: Any, *, final: bool = False) -> Settlement | None:
        if final:
            self.asked_final += 1
            return MINED if self.asked_final > self.final_after else None
        self.asked += 1
        return MINED if self.mined_after < self.asked < self.vanishes_at else None


class Ctx:
    def __init__(self, settler: ScriptedSettler, me: Address = AGENTS[0]) -> None:
        self.me, self.settler = me, settler
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def proposed(state: Settling, *calls: Call) -> Intent:
    return await intend(Ctx(ScriptedSettler()), state, *calls)  # type: ignore[arg-type]  # as much as it uses


async def test_a_new_intent_takes_the_safes_next_nonce() -> None:
    fresh = Settling(participants=tuple(AGENTS))
    intent = await proposed(fresh, *INTENT.calls)
    assert (intent.calls, intent.nonce, intent.block) == (INTENT.calls, 9, 77)


async def test_beside_an_intent_of_unknown_fate_a_new_one_takes_the_same_nonce() -> None:
    """Whatever the chain says: the old one may be mined between two questions, and both would happen."""
    intent = await proposed(STATE.next_period(), *OTHER.calls)
    assert (intent.calls, intent.nonce) == (OTHER.calls, INTENT.nonce)


async def test_when_too_many_wait_at_one_nonce_only_a_cancel_is_proposed() -> None:
    state = STATE
    for n in range(MAX_UNSETTLED - 1):
        state = with_intent(state, Intent((Call(AGENTS[0], Wei(n + 1), "0x"),), 3))
    assert (await proposed(state, *OTHER.calls)).calls == ()
    assert (await proposed(state, *INTENT.calls)).calls == INTENT.calls


async def test_an_agent_signs_the_agreed_intent_after_it_succeeded_at_the_agreed_block() -> None:
    settler = ScriptedSettler(mined_after=9)
    assert await sign.act(Ctx(settler), STATE) == signed(0)[1]
    assert settler.simulated == [INTENT.block]


async def test_an_intent_that_would_revert_is_not_signed() -> None:
    settler = ScriptedSettler(mined_after=9, succeeds=False)
    assert await sign.act(Ctx(settler), STATE) == REFUSED


async def test_where_the_nonce_is_used_up_already_the_agents_go_on_to_see_for_what() -> None:
    assert await sign.act(Ctx(ScriptedSettler(mined_after=0, succeeds=False)), STATE) == signed(0)[1]


@pytest.mark.parametrize(
    ("reached", "mined_after", "answer"),
    [(INTENT.nonce, 9, signed(0)[1]), (INTENT.nonce + 1, 9, NO_OWNER), (INTENT.nonce + 1, 0, signed(0)[1])],
)
async def test_what_is_older_than_the_owners_change_that_a_reorg_took_is_left_to_the_old_owners(
    reached: int, mined_after: int, answer: SafeSignature
) -> None:
    settler = ScriptedSettler(mined_after=mined_after)
    settler.owns = False
    assert await sign.act(Ctx(settler), replace(STATE, reached=reached)) == answer


def test_an_agent_that_is_no_owner_refuses_nothing() -> None:
    restored = replace(STATE, used=INTENT.nonce, reached=INTENT.nonce + 1)
    outcome = keep_signatures(restored, votes(signed(0), (AGENTS[1], NO_OWNER), (AGENTS[2], NO_OWNER)))
    assert outcome is not None
    assert (outcome.event, outcome.state.unsettled) == ("NO_MAJORITY", (INTENT,))
    outcome = keep_signatures(restored, votes((AGENTS[0], NO_OWNER), *(signed(n) for n in (1, 2, 3))))
    assert outcome is not None
    assert [who for who, _ in outcome.state.signatures] == AGENTS[1:]


# ---- send


async def test_only_the_keeper_sends_and_it_sees_to_it_until_the_transaction_is_mined() -> None:
    for agent, pushed in [(AGENTS[2], 3), (AGENTS[1], 0)]:
        settler = ScriptedSettler(mined_after=3)
        assert await send.act(Ctx(settler, agent), SENDING) == MINED.tx
        assert settler.pushed == pushed


async def test_a_keeper_that_finds_it_mined_does_not_send_again() -> None:
    settler = ScriptedSettler()
    assert await send.act(Ctx(settler, AGENTS[2]), SENDING) == MINED.tx
    assert settler.pushed == 0


async def test_the_chain_is_asked_less_and_less_often() -> None:
    ctx = Ctx(ScriptedSettler(mined_after=12))
    await send.act(ctx, SENDING)
    assert ctx.slept[0] == 0.1
    assert ctx.slept == sorted(ctx.slept)
    assert ctx.slept[-1] == 4


def test_a_quorum_that_saw_it_mined_ends_the_sending() -> None:
    assert see_it_mined(SENDING, all_say(MINED.tx, 2)) is None
    outcome = see_it_mined(SENDING, votes((AGENTS[0], MINED.tx), (AGENTS[1], DIGEST), (AGENTS[3], MINED.tx)))
    assert outcome is not None
    assert outcome.state == replace(SENDING, used=INTENT.nonce + 1, reached=INTENT.nonce + 1)


def test_a_silent_keeper_is_followed_by_the_next_and_its_silence_is_noted() -> None:
    outcome = send.at_deadline(replace(SENDING, keeper=AGENTS[3]), votes())
    assert outcome is not None
    assert (outcome.event, outcome.state.keeper) == ("ROTATE", AGENTS[0])
    assert outcome.state.silences == (KeeperSilence(AGENTS[3], DIGEST, 2),)
    assert outcome.state.next_period().silences == outcome.state.silences


def test_when_every_keeper_has_tried_nobody_is_blamed_and_the_intent_is_reviewed() -> None:
    state = replace(SENDING, keeper=AGENTS[1], silences=(KeeperSilence(AGENTS[0], DIGEST, 2),))
    outcome = send.at_deadline(state, votes())
    assert outcome is not None
    assert (outcome.event, outcome.state.keeper, outcome.state.silences) == ("STUCK", AGENTS[2], ())


def test_offences_are_bounded() -> None:
    state = replace(SENDING, keeper=AGENTS[3], silences=(KeeperSilence(AGENTS[0], Hash("0x"), 1),) * 100)
    outcome = send.at_deadline(state, votes())
    assert outcome is not None
    assert len(outcome.state.silences) == 100
    assert outcome.state.silences[-1].keeper == AGENTS[3]


# ---- confirm


async def test_the_outcome_is_waited_for_at_its_depth() -> None:
    ctx = Ctx(ScriptedSettler(final_after=4))
    assert await confirm.act(ctx, SENDING) == MINED
    assert len(ctx.slept) == 4


async def test_an_outcome_that_a_reorg_took_away_is_told_at_once() -> None:
    settler = ScriptedSettler(final_after=99)
    settler.vanishes_at = 3
    assert await confirm.act(Ctx(settler), SENDING) is None
    outcome = keep_settlement(SENDING, all_say(None))
    assert outcome is not None
    assert (outcome.event, outcome.state) == ("REOPENED", SENDING)


def test_the_outcome_is_what_a_quorum_read_from_the_chain() -> None:
    lie = replace(MINED, success=False)
    said = votes((AGENTS[0], MINED), (AGENTS[1], lie), (AGENTS[2], MINED), (AGENTS[3], MINED))
    outcome = keep_settlement(SENDING, said)
    assert outcome is not None
    assert (outcome.event, outcome.state.settlement, outcome.state.intent) == ("DONE", MINED, INTENT)
    assert outcome.state.unsettled == ()


@pytest.mark.parametrize(
    ("unsettled", "settlement", "event", "executed"),
    [
        ((INTENT,), MINED, "DONE", INTENT),
        ((INTENT,), replace(MINED, success=False), "FAILED", INTENT),
        ((INTENT,), replace(MINED, which=-1), "FAILED", None),
        ((INTENT,), replace(MINED, which=7), "FAILED", None),
        ((INTENT, CANCEL), replace(MINED, which=1), "FAILED", CANCEL),
        ((INTENT, CANCEL), MINED, "DONE", INTENT),  # the cancel came too late
        ((INTENT, OTHER), MINED, "FAILED", INTENT),  # an older one happened in place of what was wanted
        ((INTENT, OTHER), replace(MINED, which=1), "DONE", OTHER),
        ((CANCEL,), MINED, "FAILED", CANCEL),
    ],
)
def test_done_means_that_the_calls_wanted_last_were_made_and_intent_says_what_was(
    unsettled: Any, settlement: Settlement, event: str, executed: Intent | None
) -> None:
    outcome = keep_settlement(replace(SENDING, unsettled=unsettled), all_say(settlement))
    assert outcome is not None
    assert (outcome.event, outcome.state.intent) == (event, executed)


def test_a_keeper_whose_transaction_was_mined_late_was_not_silent() -> None:
    silences = (KeeperSilence(AGENTS[2], DIGEST, 2), KeeperSilence(AGENTS[3], DIGEST, 2))
    outcome = keep_settlement(replace(SENDING, silences=silences), all_say(MINED))
    assert outcome is not None
    assert [one.keeper for one in outcome.state.silences] == [AGENTS[3]]


def test_a_keeper_that_was_silent_is_on_record_once_however_often_that_is_confirmed() -> None:
    silences = (KeeperSilence(AGENTS[2], DIGEST, 2), KeeperSilence(AGENTS[3], DIGEST, 1, RoundNumber(7)))
    silent = replace(SENDING, silences=silences)
    first = keep_settlement(silent, all_say(MINED))
    assert first is not None
    again = keep_settlement(replace(silent, offences=first.state.offences), all_say(MINED))  # after a deep reorg
    for outcome in (first, again):
        assert outcome is not None
        (offence,) = outcome.state.offences.latest
        assert offence == Offence("keeper silence", AGENTS[3], Height(0), RoundNumber(7), PeriodNumber(1), DIGEST)


def test_a_keeper_that_was_silent_is_on_record_also_where_the_next_intent_is_signed_already() -> None:
    later = Hash("0x" + "ef" * 32)
    silences = (KeeperSilence(AGENTS[3], DIGEST, 2), KeeperSilence(AGENTS[0], later, 2))
    state = replace(mined(3, 4), silences=silences, signatures=tuple(signed(n, later) for n in range(3)))
    outcome = keep_report(state, all_say(Report(True, MINED)))
    assert outcome is not None
    assert [one.member for one in outcome.state.offences.latest] == [AGENTS[3]]


def test_nobody_is_on_record_where_anything_but_what_its_keeper_had_to_send_was_executed() -> None:
    state = replace(SENDING, silences=(KeeperSilence(AGENTS[3], DIGEST, 2),))
    outcome = keep_settlement(state, all_say(replace(MINED, digest=Hash("0x" + "ef" * 32))))
    assert outcome is not None
    assert outcome.state.offences.latest == ()


def test_a_keepers_silence_is_on_record_with_the_round_that_it_let_pass_and_the_block_that_settled() -> None:
    edges = {**BEHIND, (register, "DONE"): order, (order, "DONE"): sign, (pause, "DONE"): order}
    again = {(register, "ROUND_TIMEOUT"): register}
    service = Service("payer", state=Settling, start=register, transitions={**edges, **again}, otherwise=pause)
    period = replace(Period.start(service, AGENTS), round=send, state=SENDING, sequence=9, clock_ms=1)
    period, settled = period.end_block(1 + send.timeout_ms)
    assert settled is not None
    assert (settled.event, settled.sequence) == ("ROTATE", 9)
    period, record = taken_back(period, Offences(), Height(20), RoundNumber(settled.sequence))
    assert record == Offences()
    state: Any = period.state
    assert state.silences == (KeeperSilence(AGENTS[2], DIGEST, 2, RoundNumber(9)),)
    outcome = keep_settlement(state, all_say(replace(MINED, sender=AGENTS[3])))
    assert outcome is not None
    _, record = taken_back(replace(period, state=outcome.state), record, Height(22), RoundNumber(11))
    assert record.latest == (Offence("keeper silence", AGENTS[2], Height(22), RoundNumber(9), PeriodNumber(2), DIGEST),)


# ---- review


@pytest.mark.parametrize(
    ("said", "event"),
    [
        (("FAILS",) * 3, "CANCEL"),
        (("SOUND",) * 3, "AGAIN"),
        (("SOUND", "SOUND", "FAILS", "FAILS"), "AGAIN"),
    ],
)
def test_an_intent_is_cancelled_only_when_a_quorum_finds_that_it_fails(said: tuple[str, ...], event: str) -> None:
    outcome = keep_review(SENDING, votes(*zip(AGENTS, said, strict=False)))
    assert outcome is not None
    assert outcome.event == event
    assert (outcome.state.intent == CANCEL) == (event == "CANCEL")
    assert outcome.state.unsettled == ((INTENT, CANCEL) if event == "CANCEL" else (INTENT,))


def test_where_nothing_is_known_of_the_nonces_that_are_gone_there_is_nothing_to_go_back_to() -> None:
    outcome = keep_review(replace(SENDING, remembered=()), all_say("GONE"))
    assert outcome is not None
    assert (outcome.event, outcome.state.unsettled) == ("AGAIN", (INTENT,))


@pytest.mark.parametrize(
    ("mined", "succeeds", "answer"), [(False, True, "SOUND"), (False, False, "FAILS"), (True, False, "SOUND")]
)
async def test_what_was_mined_meanwhile_is_not_cancelled(mined: bool, succeeds: bool, answer: str) -> None:
    settler = ScriptedSettler(mined_after=0 if mined else 9, succeeds=succeeds)
    assert await review.act(Ctx(settler), SENDING) == answer


# ---- several in flight, and reorgs


def pay(number: int) -> Call:
    return Call(AGENTS[0], Wei(number), "0x")


def mined(*numbers: int, used: int | None = None) -> Settling:
    """Payments, each at the nonce of its number; a quorum saw all of them mined, and still sees those below `used`.

    Nothing is remembered of the nonces before.
    """
    state = Settling(participants=tuple(AGENTS), period=2, used=numbers[0], reached=numbers[0])
    for number in numbers:
        state = with_intent(state, Intent((pay(number),), number, 50 + number))
        state = (see_it_mined(state, all_say(MINED.tx)) or fail()).state
    return state if used is None else replace(state, used=used)


def final(state: Settling, **how: Any) -> Any:
    return keep_settlement(state, all_say(replace(MINED, **how))) or fail()


async def test_while_an_intent_waits_for_its_depth_the_next_one_takes_the_nonce_after_it() -> None:
    state = mined(3, 4)
    intent = await proposed(state, pay(9))
    assert (intent.calls, intent.nonce) == ((pay(9),), 5)
    assert [one.nonce for one in with_intent(state, intent).unsettled] == [3, 4, 5]
    assert in_flight(with_intent(state, intent)) == in_flight(state) == state.unsettled


async def test_a_call_that_may_still_happen_is_agreed_on_at_no_other_nonce() -> None:
    state = mined(3)
    assert await proposed(state, pay(8), pay(3)) == state.unsettled[0]
    other = with_intent(replace(state, used=3, reached=3), Intent((pay(7),), 3))  # it may be the older one that happens
    assert await proposed(replace(other, used=4, reached=4), pay(3)) == state.unsettled[0]
    cancelled = with_intent(replace(state, used=3, reached=3), Intent((), 3))
    assert await proposed(replace(cancelled, used=4, reached=4), pay(3)) == Intent((), 3), "or it would never end"


async def test_where_four_are_in_flight_the_oldest_comes_first() -> None:
    assert (await proposed(mined(3, 4, 5), pay(9))).nonce == 6
    assert await proposed(mined(3, 4, 5, 6), pay(9)) == Intent((pay(3),), 3)
    assert MAX_AHEAD == 4


@pytest.mark.parametrize(("succeeds", "calls"), [(True, (pay(4),)), (False, ())])
async def test_what_a_reorg_took_away_is_restored_before_anything_new_or_cancelled(succeeds: bool, calls: Any) -> None:
    ctx: Any = Ctx(ScriptedSettler(succeeds=succeeds))
    intent = await intend(ctx, mined(3, 4, 5, used=4), pay(9))
    assert (intent.calls, intent.nonce, intent.block) == (calls, 4, 77)


def test_the_search_for_what_became_of_an_intent_begins_where_it_was_agreed_on_first() -> None:
    state = with_intent(mined(3), Intent((pay(3),), 3, block=900))
    assert state.intent is not None
    assert (state.intent.block, state.unsettled[0].block) == (900, 53)


def test_the_oldest_nonce_is_settled_first_and_the_others_stay() -> None:
    outcome = final(mined(3, 4))
    assert (outcome.event, outcome.state.intent) == ("DONE", Intent((pay(3),), 3))
    assert outcome.state.unsettled == (Intent((pay(4),), 4),)
    assert outcome.state.next_period().remembered == (Settled((Intent((pay(3),), 3),)),)


def test_what_waits_behind_calls_that_failed_is_cancelled_unless_it_is_mined() -> None:
    outcome = final(mined(3, 4, 5, used=5), success=False)
    assert (outcome.event, outcome.state.missed) == ("FAILED", Intent((pay(3),), 3))
    assert outcome.state.unsettled == (Intent((pay(4),), 4), Intent((pay(5),), 5), Intent((), 5))


def test_what_waits_behind_a_no_op_that_restored_a_nonce_stays_wanted() -> None:
    restored = with_intent(mined(4, used=3), Intent((), 3))
    assert final(restored).state.unsettled == (Intent((pay(4),), 4),)


@pytest.mark.parametrize(
    ("report", "event"),
    [
        (Report(True, MINED), "DONE"),
        (Report(True, replace(MINED, success=False)), "FAILED"),
        (Report(True), "AHEAD"),
        (Report(False), "UNSIGNED"),
    ],
)
def test_a_service_that_goes_ahead_hears_what_became_of_the_oldest(report: Report, event: str) -> None:
    outcome = keep_report(mined(3, 4), all_say(report))
    assert outcome is not None
    assert outcome.event == event
    if event == "UNSIGNED":
        assert (outcome.state.intent, outcome.state.used) == (Intent((pay(3),), 3), 3)


def test_agents_that_see_different_heads_neither_stop_the_service_nor_let_too_many_ahead() -> None:
    said = votes(*zip(AGENTS, [Report(True, MINED), Report(True, MINED), Report(True), Report(True)], strict=True))
    for numbers, event in (((3, 4, 5), "AHEAD"), ((3, 4, 5, 6), "NO_MAJORITY")):
        outcome = keep_report(mined(*numbers), said)
        assert outcome is not None
        assert (outcome.event, outcome.state) == (event, mined(*numbers))


@pytest.mark.parametrize(("numbers", "waits"), [((3,), 0), ((3, 4, 5, 6), 4)])
async def test_only_where_there_is_no_room_the_outcome_is_waited_for(numbers: tuple[int, ...], waits: int) -> None:
    ctx = Ctx(ScriptedSettler(final_after=4))
    assert await collect.act(ctx, mined(*numbers)) == Report(True, MINED if waits else None)
    assert len(ctx.slept) == waits


def test_what_is_signed_already_is_sent_again_without_a_new_signature() -> None:
    outcome = keep_settlement(replace(SENDING, used=4, reached=4), all_say(None))
    assert outcome is not None
    assert (outcome.event, outcome.state.used) == ("REOPENED", 3)
    assert outcome.state.signatures == SENDING.signatures


async def test_a_keeper_that_waits_for_a_nonce_that_is_gone_is_told_so_and_the_oldest_is_restored() -> None:
    state = mined(3, 4, 5)
    assert await review.act(Ctx(_AtNonce(4)), state) == "GONE"
    outcome = keep_review(state, all_say("GONE"))
    assert outcome is not None
    assert (outcome.event, outcome.state.intent, outcome.state.used) == ("UNSIGNED", Intent((pay(3),), 3), 3)


def test_where_even_final_nonces_are_gone_the_oldest_that_is_remembered_is_restored() -> None:
    state = mined(3, 4, 5)
    for _ in range(2):
        state = final(state).state
    outcome = keep_review(with_intent(state, Intent((pay(5),), 5)), all_say("GONE"))
    assert outcome is not None
    assert (outcome.event, outcome.state.intent, outcome.state.used) == ("UNSIGNED", Intent((pay(3),), 3), 3)
    assert [one.nonce for one in outcome.state.unsettled] == [3, 4, 5]
    assert outcome.state.remembered == ()


async def test_an_outcome_that_was_final_and_is_gone_is_agreed_on_again_in_the_place_of_anything_new() -> None:
    state = final(mined(9)).state.next_period()
    assert (state.unsettled, state.reached) == ((), 10)
    again = await proposed(state, pay(12))  # the Safe's nonce is 9 again, as deep as it was configured
    assert again == Intent((pay(9),), 9)
    restored = with_intent(state, again)
    assert (restored.unsettled, restored.used, restored.reached) == ((again,), 9, 10)
    assert restored.remembered == state.remembered[:-1], "no nonce is both final and open"
    assert final(restored).state.intent == again


async def test_a_nonce_that_others_used_is_used_again_by_a_no_op_where_a_reorg_took_it_away() -> None:
    """Else the intent behind it would wait for ever for the others to come back."""
    state = with_intent(Settling(participants=tuple(AGENTS), period=2), Intent((pay(2),), 2, block=52))
    assert await review.act(Ctx(_AtNonce(1)), state) == "GONE"
    outcome = keep_review(state, all_say("GONE"))
    assert outcome is not None
    assert (outcome.event, outcome.state.intent, outcome.state.used) == ("UNSIGNED", Intent((), 0), 0)
    again = with_intent(final(outcome.state, which=-1).state, Intent((), 1))  # it was nonce 1 alone that was gone
    assert (final(again).state.unsettled, final(again).state.used) == ((Intent((pay(2),), 2),), 2)


def test_no_more_than_the_last_nonces_of_others_are_remembered_and_none_twice() -> None:
    state = with_intent(Settling(participants=tuple(AGENTS)), Intent((pay(9),), 9))
    assert state.remembered == tuple(Settled((Intent((), nonce),)) for nonce in (5, 6, 7, 8))
    later = with_intent(final(state).state.next_period(), Intent((pay(11),), 11))
    assert [one.intents for one in later.remembered] == [
        (Intent((), 7),),
        (Intent((), 8),),
        (Intent((pay(9),), 9),),
        (Intent((), 10),),
    ]
    assert with_intent(state, Intent((pay(10),), 10)).remembered == state.remembered


async def test_a_reorg_that_took_more_than_is_remembered_waits_for_people() -> None:
    state = replace(final(mined(9)).state.next_period(), remembered=())
    with pytest.raises(ChainError, match=r"the Safe's nonce is 9, and 10 nonces were used"):
        await proposed(state, pay(12))
    waiting = with_intent(Settling(participants=tuple(AGENTS)), Intent((pay(9),), 9))
    assert await review.act(Ctx(_AtNonce(5)), waiting) == "GONE"
    with pytest.raises(ChainError, match=r"the Safe's nonce is 4, and 9 nonces were used: .* last 4 settlements"):
        await review.act(Ctx(_AtNonce(4)), waiting)


def test_what_lost_at_a_final_nonce_is_remembered_with_what_won_and_others_by_a_no_op() -> None:
    two = replace(STATE, unsettled=(INTENT, OTHER), remembered=())
    assert final(two).state.remembered == (Settled((OTHER, INTENT)),)
    assert final(two, which=-1).state.remembered == (Settled((INTENT, OTHER, CANCEL)),)
    state = Settling(participants=tuple(AGENTS))
    for number in range(1, 9):
        state = final(with_intent(state, Intent((pay(number),), number))).state.next_period()
    assert [one.nonce for one in state.remembered] == [5, 6, 7, 8]


def test_the_oldest_is_asked_for_only_where_something_is_unsettled() -> None:
    with pytest.raises(ValueError, match="nothing is unsettled"):
        _run(confirm.act(Ctx(ScriptedSettler()), Settling()))


def test_a_service_goes_ahead_by_another_table() -> None:
    edges = {
        **ahead, (register, "DONE"): order, (register, "ROUND_TIMEOUT"): register, (order, "DONE"): sign,
        (collect, "AHEAD"): order, (collect, "DONE"): order, (collect, "FAILED"): pause, (pause, "DONE"): confirm,
        (confirm, "DONE"): pause, (confirm, "FAILED"): pause,
    }  # fmt: skip
    service = Service("payer", state=Settling, start=register, transitions=edges, otherwise=pause)
    assert service.table["SendRound", "DONE"] is collect


@agree(same("intent"))
async def order(ctx: Any, state: Settling) -> Intent:
    return INTENT


BEHIND: dict[Any, Any] = {**transitions, (confirm, "DONE"): pause, (confirm, "FAILED"): pause}


STEPS = ("intend", "sign", "no signatures", "deadline", "fails", "vanished", "next period")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 12)), max_size=40))
def test_whatever_happens_every_intent_stays_unsettled_at_one_nonce_until_an_outcome_is_final(
    steps: list[tuple[str, int]],
) -> None:
    state, wanted = Settling(participants=tuple(AGENTS)), set[Intent]()
    for step, n in steps:
        if step == "intend":  # `n` is what the chain says the next nonce is, too: it may have moved on
            intent = _run(intend(Ctx(_AtNonce(n)), state, Call(AGENTS[0], Wei(n), "0x")))  # type: ignore[arg-type]
            state = with_intent(state, intent)
            wanted.add(intent)
        elif state.intent is None:
            continue
        elif step == "sign":
            state = (keep_signatures(state, votes(*(signed(k) for k in range(3)))) or fail()).state
        elif step == "no signatures":
            state = (keep_signatures(state, all_say(REFUSED)) or fail()).state
        elif step == "deadline" and state.signatures:
            state = (send.at_deadline(state, votes()) or fail()).state
        elif step == "fails":
            state = (keep_review(state, all_say("FAILS")) or fail()).state
            wanted.add(replace(INTENT, calls=(), nonce=state.unsettled[0].nonce))
        elif step == "vanished":
            state = (keep_settlement(state, all_say(None)) or fail()).state
        else:
            state = state.next_period()
        assert set(state.unsettled) == wanted
        assert len({intent.nonce for intent in state.unsettled}) == 1
        assert len(state.unsettled) <= MAX_UNSETTLED + 1


class _AtNonce(ScriptedSettler):
    def __init__(self, nonce: int) -> None:
        super().__init__()
        self._nonce = nonce

    async def next_nonce(self) -> tuple[int, int]:
        return self._nonce, 77

    async def newest(self) -> tuple[int, int]:
        return self._nonce, 77


def _run(act: Any) -> Any:
    """Run what waits for nothing."""
    try:
        act.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits")


def fail() -> Any:
    raise AssertionError("the round did not end")


def test_a_service_joins_the_table_and_says_what_is_before_and_behind_it() -> None:
    edges = {**BEHIND, (register, "DONE"): order, (order, "DONE"): sign, (pause, "DONE"): order}
    register_again = {(register, "ROUND_TIMEOUT"): register}
    service = Service("payer", state=Settling, start=register, transitions={**edges, **register_again}, otherwise=pause)
    assert service.table[send.name, "STUCK"] is review
    assert service.table[sign.name, "NO_MAJORITY"] is pause


def test_a_service_that_never_agrees_on_an_intent_is_an_error_at_import() -> None:
    edges = {**BEHIND, (register, "DONE"): sign, (register, "ROUND_TIMEOUT"): register, (pause, "DONE"): sign}
    with pytest.raises(ServiceError, match=r"needs the field 'intent', which no round sets on the way .*SignRound"):
        Service("payer", state=Settling, start=register, transitions=edges, otherwise=pause)


def test_two_rounds_lie_between_an_agreed_intent_and_its_sending() -> None:
    """The round that agrees on it leads to `sign`, `sign` to `send`, whose act begins by sending."""
    assert transitions[sign, "DONE"] is send
