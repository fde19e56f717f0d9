from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from quorate.fsm import State, Votes
from quorate.rounds.settle import Intent, SafeSignature, Settlement, confirm, keep_settlement, keep_signatures, sign
from quorate.units import Address, Call, Hash, Wei

ACCOUNTS = sorted((Account.from_key(bytes([n]) * 32) for n in range(1, 5)), key=lambda account: account.address)
AGENTS = [Address(account.address) for account in ACCOUNTS]
DIGEST = Hash("0x" + "ab" * 32)
INTENT = Intent(Call(AGENTS[0], Wei(0), "0x"), 3)
MINED = Settlement(Hash("0x" + "cd" * 32), 7, 80_000, True)


@dataclass(frozen=True)
class Settling(State):
    keeper: Address = Address("")
    intent: Intent | None = INTENT
    signatures: tuple[tuple[Address, SafeSignature], ...] = ()
    settlement: Settlement | None = None


STATE = Settling(participants=tuple(AGENTS), period=2)


def signed(index: int, digest: str = DIGEST, by: int | None = None) -> tuple[Address, SafeSignature]:
    signer = ACCOUNTS[index if by is None else by]
    signature = signer.unsafe_sign_hash(bytes.fromhex(digest[2:])).signature
    return AGENTS[index], SafeSignature(Hash(digest), "0x" + bytes(signature).hex())


def votes(*pairs: tuple[Address, Any]) -> Votes[Any]:
    return Votes.of(pairs, n=4, quorum=3)


def test_a_quorum_of_valid_signatures_is_kept_and_names_a_keeper() -> None:
    outcome = keep_signatures(STATE, votes(signed(0), signed(2), signed(3)))
    assert outcome is not None
    assert outcome.event == "DONE"
    assert [who for who, _ in outcome.state.signatures] == [AGENTS[0], AGENTS[2], AGENTS[3]]
    assert outcome.state.keeper == AGENTS[2]


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


def test_the_outcome_is_what_a_quorum_read_from_the_chain() -> None:
    lie = replace(MINED, success=False)
    outcome = keep_settlement(
        STATE, votes((AGENTS[0], MINED), (AGENTS[1], lie), (AGENTS[2], MINED), (AGENTS[3], MINED))
    )
    assert outcome is not None
    assert (outcome.event, outcome.state.settlement) == ("DONE", MINED)


def test_a_failed_call_is_told_as_failed() -> None:
    failed = replace(MINED, success=False)
    outcome = keep_settlement(STATE, votes(*((agent, failed) for agent in AGENTS[:3])))
    assert outcome is not None
    assert outcome.event == "FAILED"


def test_when_every_keeper_has_tried_the_settlement_has_failed() -> None:
    state = replace(STATE, keeper=AGENTS[1])  # period 2 began with the third agent
    outcome = confirm.at_deadline(state, votes())
    assert outcome is not None
    assert outcome.event == "FAILED"


def test_a_silent_keeper_is_followed_by_the_next_participant_and_the_last_by_the_first() -> None:
    state = replace(STATE, keeper=AGENTS[3])
    outcome = confirm.at_deadline(state, votes())
    assert outcome is not None
    assert (outcome.event, outcome.state.keeper) == ("ROTATE", AGENTS[0])


class ScriptedSettler:
    def __init__(self, mined_after: int) -> None:
        self.asked, self.sent, self._mined_after = 0, 0, mined_after

    async def sign(self, intent: Intent) -> SafeSignature:
        return signed(0)[1]

    async def execute(self, intent: Intent, signatures: Any) -> Hash:
        self.sent += 1
        return MINED.tx

    async def outcome(self, intent: Intent) -> Settlement | None:
        self.asked += 1
        return MINED if self.asked > self._mined_after else None


class Ctx:
    def __init__(self, me: Address, settler: ScriptedSettler) -> None:
        self.me, self.settler = me, settler

    async def sleep(self, seconds: float) -> None: ...


async def test_only_the_keeper_sends() -> None:
    for agent, sent in [(AGENTS[0], 1), (AGENTS[1], 0)]:
        settler = ScriptedSettler(mined_after=3)
        assert await confirm.act(Ctx(agent, settler), replace(STATE, keeper=AGENTS[0])) == MINED
        assert settler.sent == sent


async def test_a_keeper_that_finds_the_vote_mined_does_not_send_again() -> None:
    settler = ScriptedSettler(mined_after=0)
    assert await confirm.act(Ctx(AGENTS[0], settler), replace(STATE, keeper=AGENTS[0])) == MINED
    assert settler.sent == 0


async def test_an_agent_signs_the_agreed_intent() -> None:
    assert await sign.act(Ctx(AGENTS[0], ScriptedSettler(0)), STATE) == signed(0)[1]
