"""A Safe's owners follow the members: the calls, the rounds, and the signing boundary that signs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from quorate.chain import is_owner_change, owner_calls
from quorate.chain.safe import _SENTINEL, _abi
from quorate.fsm import Context, Period, Service, Settled, agree
from quorate.host.agreed import Agreed
from quorate.host.decision_maker import IntentRequest, Limits, OverLimit, QuorateDecisionMaker, SigningMessage
from quorate.host.signed import Memory
from quorate.members import Change, with_change
from quorate.rounds import owners, same
from quorate.rounds.membership import CHANGE_MEMBERS
from quorate.rounds.owners import OwnedMembership, owners_of, threshold_after
from quorate.rounds.settle import Intent, SafeSignature, Settlement
from quorate.units import Address, Call, Hash, Wei
from tests.attacks import attack_calls
from tests.unit.member_records import CHAIN, KEYS, member, records

SAFE, STRANGER = Address("0x" + "1" * 40), Address("0x" + "2" * 40)
A, B, C, D, E = (key.address for key in KEYS[:5])
LISTED = (C, A, D, B)
"""The owners in the order in which the Safe tells them."""


def own(function: str, *arguments: object) -> Call:
    return Call(SAFE, Wei(0), _abi("Safe").encode(function, *arguments))


@pytest.mark.parametrize(
    ("come", "go", "now", "threshold", "calls"),
    [
        (E, None, 3, 4, (own("addOwnerWithThreshold", E, 4),)),
        (None, D, 3, 3, (own("removeOwner", A, D, 3),)),
        (None, C, 3, 3, (own("removeOwner", _SENTINEL, C, 3),)),
        (E, B, 3, 3, (own("swapOwner", D, B, E),)),
        (E, C, 2, 3, (own("swapOwner", _SENTINEL, C, E), own("changeThreshold", 3))),
        (E, STRANGER, 3, 3, (own("addOwnerWithThreshold", E, 3),)),
        (A, D, 3, 3, (own("removeOwner", A, D, 3),)),
        (A, None, 3, 3, ()),
        (A, None, 2, 3, (own("changeThreshold", 3),)),
        (None, None, 3, 3, ()),
    ],
)
def test_a_change_of_members_is_one_transaction_of_the_safe(
    come: Address | None, go: Address | None, now: int, threshold: int, calls: tuple[Call, ...]
) -> None:
    assert owner_calls(SAFE, LISTED, now, come=come, go=go, threshold=threshold) == calls
    assert not calls or is_owner_change(calls, SAFE, come=come, go=go, threshold=threshold)


@pytest.mark.parametrize(
    "calls",
    [
        (),
        (own("addOwnerWithThreshold", STRANGER, 3),),
        (own("addOwnerWithThreshold", E, 1),),
        (own("swapOwner", A, C, E),),
        (own("swapOwner", A, B, STRANGER),),
        (own("swapOwner", D, B, E), own("changeThreshold", 1)),
        (own("swapOwner", D, B, E), own("swapOwner", D, B, E)),
        (own("changeThreshold", 2),),
        (own("removeOwner", A, C, 3),),
        (own("enableModule", E),),
        (replace(own("swapOwner", D, B, E), to=STRANGER),),
        (replace(own("swapOwner", D, B, E), value=Wei(1)),),
        (Call(SAFE, Wei(0), "0x"),),
        (Call(SAFE, Wei(0), own("swapOwner", D, B, E).data + "00"),),
        (own("swapOwner", D, B, E), Call(STRANGER, Wei(0), "0x")),
    ],
)
def test_no_other_call_passes_for_the_replacement_of_one_member(calls: tuple[Call, ...]) -> None:
    assert not is_owner_change(calls, SAFE, come=E, go=B, threshold=3)


# ---- the signing boundary

FOUR = records(0, 1, 2, 3)
SWAP = Change(member(4), FOUR[1].address)


@dataclass(frozen=True)
class Owned(OwnedMembership):
    value: int = 0


@agree(same("value"))
async def work(ctx: Context, state: Owned) -> int:
    return state.value + 1


SERVICE = Service(
    "owned",
    state=Owned,
    start=work,
    transitions={**owners.transitions, (work, "DONE"): work},
    otherwise=work,
    interrupts=owners.interrupts,
)
BEGUN = Owned(chain=CHAIN, roster=FOUR)


def begin(state: Owned = BEGUN) -> Any:
    return Period.start(SERVICE, [one.address for one in FOUR], state).end_block(1)[0]


def boundary(state: Owned) -> QuorateDecisionMaker:
    key = SimpleNamespace(unsafe_sign_hash=lambda digest: SimpleNamespace(signature=digest))
    wallet = SimpleNamespace(crypto_objects={"ethereum": SimpleNamespace(entity=key)})
    made = QuorateDecisionMaker(identity=SimpleNamespace(name="a", address=A), wallet=wallet, config={})
    agreed = Agreed()
    agreed.commit(begin(state))
    made.bind(agreed, CHAIN, Limits(safe=SAFE, chain_id=1), Memory())
    return made


def ask(state: Owned, *calls: Call) -> bytes:
    intent = Intent(calls, 7)
    message = SigningMessage(IntentRequest(intent))
    boundary(replace(state, intent=intent)).handle(message)
    return message.answer.result(timeout=0)


def test_the_boundary_signs_the_owner_calls_of_the_agreed_change_alone() -> None:
    agreed = replace(BEGUN, change=SWAP)
    swap = own("swapOwner", D, FOUR[1].address, member(4).address)
    assert ask(agreed, swap)
    with pytest.raises(OverLimit, match="does not allow"):
        ask(BEGUN, swap)
    with pytest.raises(OverLimit, match="does not allow"):
        ask(agreed, own("swapOwner", D, FOUR[2].address, member(4).address))
    with pytest.raises(OverLimit, match="does not allow"):
        ask(agreed, swap, own("addOwnerWithThreshold", STRANGER, 3))


def test_the_boundary_signs_the_last_change_of_owners_again_only_where_a_reorg_took_it_away() -> None:
    swap = own("swapOwner", D, FOUR[1].address, member(4).address)
    made = replace(with_change(BEGUN, SWAP), made=SWAP, reached=8)  # `ask` is for nonce 7
    assert ask(made, swap)
    with pytest.raises(OverLimit, match="does not allow"):
        ask(replace(made, reached=7), swap)
    with pytest.raises(OverLimit, match="does not allow"):
        ask(made, own("swapOwner", D, FOUR[2].address, member(4).address))


@pytest.mark.parametrize("call", attack_calls(SAFE, STRANGER))
def test_the_boundary_refuses_every_attack_on_the_safe_also_while_owners_change(call: Call) -> None:
    with pytest.raises(OverLimit):
        ask(replace(BEGUN, change=SWAP), call)


# ---- the rounds


def told(period: Any, value: Any, count: int = 3) -> tuple[Any, Settled | None]:
    for one in period.members[:count]:
        period = period.deliver(one, period.sequence, period.round.encode(value))
    after, settled = period.end_block(2)
    return after, settled


def changing() -> Any:
    """The change is agreed, nothing is being settled: the owners' turn."""
    period = begin()
    for one in period.members[:3]:
        period = period.deliver(one, period.sequence, period.ask(CHANGE_MEMBERS))
    period, _ = period.end_block(2)
    period, settled = told(period, SWAP)
    assert settled is not None
    assert settled.event == "DONE"
    return period


def signed(period: Any) -> Any:
    digest = Hash("0x" + "ab" * 32)
    for key in KEYS[:3]:
        signature = SafeSignature(digest, "0x" + key.sign_digest(bytes.fromhex(digest[2:])).hex())
        period = period.deliver(key.address, period.sequence, period.round.encode(signature))
    return period.end_block(3)[0]


INTENT = Intent((own("swapOwner", D, FOUR[1].address, member(4).address),), 0, 9)


def settlement(success: bool = True, which: int = 0) -> Settlement:
    return Settlement(which, Hash("0x" + "01" * 32), 10, 90_000, success, A)


def test_the_members_change_only_after_the_owners_have_for_good() -> None:
    period = changing()
    assert period.round is owners.propose_owners
    assert period.state.roster == FOUR, "an approved change is none yet"
    period, _ = told(period, INTENT)
    assert period.round is owners.sign_owners
    period = signed(period)
    assert period.round is owners.send_owners
    period, _ = told(period, Hash("0x" + "01" * 32))
    assert period.round is owners.confirm_owners
    assert period.state.roster == FOUR
    period, settled = told(period, settlement())
    assert settled == Settled("ConfirmOwnersRound", "DONE", settled.sequence if settled else 0)
    assert period.round is work
    assert period.state.roster == with_change(BEGUN, SWAP).roster
    assert (period.state.change, period.state.intent, period.state.unsettled) == (None, None, ())
    assert period.state.made == SWAP


def test_where_the_owners_do_not_change_the_members_stay() -> None:
    period, _ = told(changing(), INTENT)
    period, _ = told(signed(period), Hash("0x" + "01" * 32))
    period, settled = told(period, settlement(success=False))
    assert settled is not None
    assert (settled.event, period.round.name) == ("FAILED", "WorkRound")
    assert (period.state.roster, period.state.change) == (FOUR, None)


def test_owners_that_are_right_already_need_no_transaction() -> None:
    period, settled = told(changing(), replace(INTENT, calls=()))
    assert settled is not None
    assert (settled.event, period.round.name) == ("NOTHING", "WorkRound")
    assert period.state.roster == with_change(BEGUN, SWAP).roster


def test_proposals_of_the_same_calls_at_different_blocks_are_one() -> None:
    period = changing()
    for number, one in enumerate(period.members[:3]):
        period = period.deliver(one, period.sequence, period.round.encode(replace(INTENT, block=number)))
    period, _ = period.end_block(2)
    assert period.round is owners.sign_owners
    assert period.state.intent.block == 1


def test_a_change_that_nobody_can_propose_in_time_is_given_up_until_it_is_approved_anew() -> None:
    period, _ = changing().end_block(10)
    period, settled = period.end_block(40_010)
    assert settled is not None
    assert (settled.event, period.round.name, period.state.change) == ("GIVEN_UP", "WorkRound", None)


def test_a_change_that_may_have_signatures_is_never_forgotten() -> None:
    """Its transaction could still be executed: owners and members would part."""
    period, _ = told(changing(), INTENT)
    period, _ = period.end_block(10)
    period, settled = period.end_block(40_010)
    assert settled is not None
    assert (settled.event, period.round.name) == ("ROUND_TIMEOUT", "ProposeOwnersRound")
    period, settled = period.end_block(50_000)
    period, settled = period.end_block(90_010)
    assert settled is not None
    assert (settled.event, period.round.name) == ("ROUND_TIMEOUT", "ProposeOwnersRound")
    assert period.state.change == SWAP


def test_owners_wait_until_what_is_being_settled_has_settled() -> None:
    for busy in (replace(BEGUN, intent=INTENT), replace(BEGUN, unsettled=(INTENT,))):
        period = begin(replace(busy, change=SWAP))
        period, _ = told(period, 1)
        assert period.round is work
    period, _ = told(begin(replace(BEGUN, change=SWAP)), 1)
    assert period.round is owners.propose_owners


def test_a_second_change_is_refused_while_one_is_being_made() -> None:
    period = changing()
    for one in period.members[:3]:
        period = period.deliver(one, period.sequence, period.ask(CHANGE_MEMBERS))
    period, _ = period.end_block(2)
    assert period.round is owners.agree_change
    period, settled = told(period, Change(join=member(5)))
    assert settled is not None
    assert (settled.event, period.round.name, period.state.change) == ("REFUSED", "ProposeOwnersRound", SWAP)


@pytest.mark.parametrize(
    ("change", "come", "go", "threshold"),
    [
        (Change(join=member(4)), E, None, 4),
        (Change(leave=B), None, B, 3),
        (Change(member(4), B), E, B, 3),
        (Change(member(1, generation=1), B), None, None, 3),
    ],
)
def test_owners_and_threshold_follow_from_the_change(
    change: Change, come: Address | None, go: Address | None, threshold: int
) -> None:
    assert owners_of(change) == (come, go)
    assert threshold_after(replace(BEGUN, change=change)) == threshold
