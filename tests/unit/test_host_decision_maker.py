"""The signing boundary, with open-aea's real wallet and thread: what it signs, what it refuses, where the key stays."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from aea.crypto.wallet import Wallet as AeaWallet
from aea.decision_maker.base import DecisionMaker
from aea.identity.base import Identity
from aea.protocols.base import Message
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from quorate.abci import UnsignedPayload
from quorate.chain import SafeTransaction, Wallet, load_abi, selector_of
from quorate.chain.safe import MULTI_SEND, _abi
from quorate.errors import QuorateError
from quorate.fsm import Period, Service, State, agree
from quorate.host.agreed import Agreed
from quorate.host.decision_maker import (
    ExecutionRequest,
    IntentRequest,
    Limits,
    NotAgreed,
    OverLimit,
    QuorateDecisionMaker,
    SigningMessage,
)
from quorate.host.signed import Memory
from quorate.host.signer import Signer
from quorate.model import ModelRequest
from quorate.rounds import same
from quorate.rounds.settle import Intent, SafeSignature
from quorate.signatures import recover
from quorate.units import Address, Call, Hash, Wei
from tests.attacks import attack_calls

KEY = bytes(range(1, 33))
PASSPHRASE = "not in any log"
ME = Wallet.from_key(KEY).address
SAFE, GOVERNOR, STRANGER, REGISTRY = (Address("0x" + digit * 40) for digit in "1234")
VOTE = selector_of("castVoteWithReason(uint256,uint8,string)")
LIMITS = Limits(safe=SAFE, chain_id=31337, calls=frozenset({(GOVERNOR, VOTE)}))
CALL = Call(GOVERNOR, Wei(0), load_abi("QuorateGovernor").encode("castVoteWithReason", 7, 1, "because"))
INTENT = Intent((CALL,), 5)
BATCH = Intent((CALL, replace(CALL, data=load_abi("QuorateGovernor").encode("castVoteWithReason", 8, 0, ""))), 5)
EXECUTION = ExecutionRequest(nonce=3, gas=300_000, max_fee_per_gas=Wei(10**9), max_priority_fee_per_gas=Wei(1))
CHAIN = "delegate-1"


@dataclass(frozen=True)
class Settling(State):
    answer: int = 0
    intent: Intent | None = None
    signatures: tuple[tuple[Address, SafeSignature], ...] = ()


@agree(same("answer"))
async def settle(ctx: Any, state: Settling) -> int:
    return 1


@agree(same("answer"))
async def rest(ctx: Any, state: Settling) -> int:
    return 1


SERVICE = Service(
    "settling",
    state=Settling,
    start=settle,
    transitions={(settle, "DONE"): rest, (rest, "DONE"): settle},
    otherwise=settle,
)


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> AeaWallet:
    """open-aea's wallet on a keystore that our own code wrote."""
    path = tmp_path_factory.mktemp("keys") / "keystore.json"
    Wallet.from_key(KEY).save_keystore(path, PASSPHRASE, scrypt_n=2)
    return AeaWallet({"ethereum": str(path)}, password=PASSPHRASE)


def decision_maker(wallet: AeaWallet) -> QuorateDecisionMaker:
    return QuorateDecisionMaker(identity=Identity("agent_1", address=ME, public_key=""), wallet=wallet, config={})


def period(sequence: int = 10, **state: Any) -> Period:
    return replace(Period.start(SERVICE, [ME], Settling(**state)), sequence=sequence)


class Boundary:
    """A bound decision maker, asked directly."""

    def __init__(self, wallet: AeaWallet, limits: Limits | None = LIMITS) -> None:
        self.agreed = Agreed()
        self.handler = decision_maker(wallet)
        self.handler.bind(self.agreed, CHAIN, limits, Memory())

    def ask(self, request: Any) -> bytes:
        message = SigningMessage(request)
        self.handler.handle(message)
        return message.answer.result(timeout=0)


@pytest.fixture
def boundary(wallet: AeaWallet) -> Boundary:
    made = Boundary(wallet)
    made.agreed.commit(period(intent=INTENT))
    return made


def payload(**changes: Any) -> UnsignedPayload:
    return replace(UnsignedPayload(CHAIN, 0, 10, "SettleRound", bytes(32), b"1"), **changes)


def model_request(path: str = "/v1/chat/completions") -> ModelRequest:
    nothing = Hash("0x" + "00" * 32)
    return ModelRequest(
        chain_id=31337, registry=REGISTRY, operator=STRANGER, path=path, body_hash=nothing, time=1, nonce=nothing
    )


def own_signature(intent: Intent = INTENT) -> tuple[Address, SafeSignature]:
    digest = SafeTransaction(intent.calls, intent.nonce).digest(LIMITS.chain_id, SAFE)
    return ME, SafeSignature(Hash("0x" + digest.hex()), "0x" + Wallet.from_key(KEY).sign_digest(digest).hex())


# ---- what it signs


@pytest.mark.parametrize("sequence", [10, 11, 12])
def test_a_payload_of_this_chain_and_of_the_rounds_at_hand_is_signed(boundary: Boundary, sequence: int) -> None:
    request = payload(sequence=sequence)
    assert recover(request.digest(), boundary.ask(request)) == ME


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_request_to_a_model_is_signed(boundary: Boundary, path: str) -> None:
    assert recover(model_request(path).digest(), boundary.ask(model_request(path))) == ME


def test_the_agreed_intent_is_signed_as_the_safes_own_transaction(boundary: Boundary) -> None:
    digest = SafeTransaction(INTENT.calls, INTENT.nonce).digest(31337, SAFE)
    assert recover(digest, boundary.ask(IntentRequest(INTENT))) == ME


def test_a_request_has_no_place_for_bytes_that_others_made() -> None:
    """Every signer derives the Safe's hash and the transaction from the decoded calls: nothing is signed blindly."""
    assert [one.name for one in fields(IntentRequest)] == ["intent"]
    assert {one.type for one in fields(ExecutionRequest)} == {"int", "Wei"}
    assert [one.name for one in fields(Intent)] == ["calls", "nonce", "block"]
    assert [one.name for one in fields(Call)] == ["to", "value", "data"]


def test_the_execution_is_made_of_agreed_state_alone(boundary: Boundary) -> None:
    boundary.agreed.commit(period(intent=INTENT, signatures=(own_signature(),)))
    raw = boundary.ask(EXECUTION)
    assert Account.recover_transaction(raw) == ME
    sent = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    own = bytes.fromhex(own_signature()[1].signature[2:])
    expected = SafeTransaction(INTENT.calls, INTENT.nonce).execution(SAFE, {ME: own})
    assert (HexBytes(sent["to"]).hex(), HexBytes(sent["data"]).hex()) == (SAFE[2:].lower(), expected.data[2:])
    assert (sent["value"], sent["nonce"], sent["gas"], sent["chainId"]) == (0, 3, 300_000, 31337)


def test_several_agreed_calls_are_signed_as_a_delegatecall_of_multisend_call_only_and_of_nothing_else(
    boundary: Boundary,
) -> None:
    boundary.agreed.commit(period(intent=BATCH, signatures=(own_signature(BATCH),)))
    digest = SafeTransaction(BATCH.calls, BATCH.nonce).digest(31337, SAFE)
    assert recover(digest, boundary.ask(IntentRequest(BATCH))) == ME
    sent = TypedTransaction.from_bytes(HexBytes(boundary.ask(EXECUTION))).as_dict()
    to, value, data, operation, *_ = _abi("Safe").function("execTransaction", 10).decode_arguments(sent["data"][4:])
    assert (to, value, operation) == (MULTI_SEND, 0, 1)
    assert b"".join(bytes.fromhex(call.data[2:]) for call in BATCH.calls[:1]) in data


def test_a_cancel_is_signed_without_any_permission(wallet: AeaWallet) -> None:
    boundary, cancel = Boundary(wallet, Limits(safe=SAFE, chain_id=31337)), Intent((), 5)
    boundary.agreed.commit(period(intent=cancel, signatures=(own_signature(cancel),)))
    digest = SafeTransaction((), 5).digest(31337, SAFE)
    assert recover(digest, boundary.ask(IntentRequest(cancel))) == ME
    sent = TypedTransaction.from_bytes(HexBytes(boundary.ask(EXECUTION))).as_dict()
    to, value, data, operation, *_ = _abi("Safe").function("execTransaction", 10).decode_arguments(sent["data"][4:])
    assert (to, value, data, operation) == (SAFE, 0, b"", 0)


# ---- what it refuses


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"chain_id": "delegate-2"}, "for the chain 'delegate-2'; this agent serves 'delegate-1'"),
        ({"sequence": 9}, "for round 9; the quorum is in round 10"),
        ({"sequence": 13}, "for round 13"),
        ({"sequence": 2**63}, "the quorum is in round 10"),
    ],
)
def test_a_payload_of_another_chain_or_a_far_round_is_refused(
    boundary: Boundary, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(NotAgreed, match=complaint):
        boundary.ask(payload(**changes))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions/../../admin", "/V1/embeddings", ""])
def test_a_request_to_any_other_path_is_refused(boundary: Boundary, path: str) -> None:
    with pytest.raises(OverLimit, match="an agent may ask"):
        boundary.ask(model_request(path))


@pytest.mark.parametrize(
    "other",
    [
        replace(INTENT, nonce=6),
        replace(INTENT, calls=(replace(CALL, data=CALL.data.replace("07", "08", 1)),)),
        replace(INTENT, calls=(replace(CALL, to=STRANGER),)),
        replace(INTENT, calls=(replace(CALL, value=Wei(1)),)),
        replace(INTENT, calls=()),
        replace(INTENT, calls=(CALL, CALL)),
    ],
)
def test_an_intent_that_is_not_the_agreed_one_is_refused(boundary: Boundary, other: Intent) -> None:
    with pytest.raises(NotAgreed, match="the quorum's intent is"):
        boundary.ask(IntentRequest(other))


@pytest.mark.parametrize("state", [None, {}])
def test_without_an_agreed_intent_nothing_is_signed_for_the_safe(wallet: AeaWallet, state: Any) -> None:
    boundary = Boundary(wallet)
    if state is not None:
        boundary.agreed.commit(period(**state))
    for request in (IntentRequest(INTENT), EXECUTION):
        with pytest.raises(NotAgreed):
            boundary.ask(request)


@pytest.mark.parametrize("place", ["alone", "first of two", "last of two"])
@pytest.mark.parametrize(
    "call",
    [
        Call(STRANGER, Wei(0), CALL.data),
        Call(GOVERNOR, Wei(0), selector_of("relay(address,uint256,bytes)") + "00" * 96),
        Call(GOVERNOR, Wei(0), VOTE.upper().replace("0X", "0x") + CALL.data[10:]),
        Call(GOVERNOR, Wei(0), "0x"),
        Call(GOVERNOR, Wei(0), VOTE[:9]),
        Call(GOVERNOR, Wei(1), CALL.data),
        Call(GOVERNOR, Wei(-1), CALL.data),
        *attack_calls(SAFE, STRANGER),
    ],
    ids=repr,
)
def test_what_the_owner_does_not_allow_is_not_signed_even_if_the_quorum_agreed(
    wallet: AeaWallet, call: Call, place: str
) -> None:
    calls = {"alone": (call,), "first of two": (call, CALL), "last of two": (CALL, call)}[place]
    boundary, intent = Boundary(wallet), Intent(calls, 5)
    boundary.agreed.commit(period(intent=intent, signatures=(own_signature(),)))
    for request in (IntentRequest(intent), EXECUTION):
        with pytest.raises(OverLimit):
            boundary.ask(request)


@pytest.mark.parametrize(
    "changes", [{"gas": 1_000_001}, {"max_fee_per_gas": Wei(500 * 10**9 + 1)}, {"gas": 2**64, "max_fee_per_gas": 2**64}]
)
def test_gas_and_fee_beyond_the_owners_limit_are_refused(boundary: Boundary, changes: dict[str, Any]) -> None:
    boundary.agreed.commit(period(intent=INTENT, signatures=(own_signature(),)))
    with pytest.raises(OverLimit, match="the owner allows 1000000 at 500000000000"):
        boundary.ask(replace(EXECUTION, **changes))


def test_an_execution_without_agreed_signatures_is_refused(boundary: Boundary) -> None:
    with pytest.raises(NotAgreed, match="no intent with a quorum of signatures"):
        boundary.ask(EXECUTION)


def test_an_agent_without_a_safe_signs_nothing_on_chain(wallet: AeaWallet) -> None:
    boundary = Boundary(wallet, limits=None)
    boundary.agreed.commit(period(intent=INTENT, signatures=(own_signature(),)))
    for request in (IntentRequest(INTENT), EXECUTION):
        with pytest.raises(OverLimit, match="without a Safe"):
            boundary.ask(request)
    assert recover(payload().digest(), boundary.ask(payload())) == ME


class OwnDigest(UnsignedPayload):
    def digest(self) -> bytes:
        return b"\xaa" * 32


@pytest.mark.parametrize(
    "request_", [None, b"\xaa" * 32, INTENT, OwnDigest(CHAIN, 0, 10, "SettleRound", bytes(32), b"1")]
)
def test_a_request_of_another_kind_or_with_its_own_digest_is_refused(boundary: Boundary, request_: Any) -> None:
    with pytest.raises(NotAgreed, match="nothing of that kind is ever signed"):
        boundary.ask(request_)


def test_a_message_of_open_aeas_own_is_not_served(boundary: Boundary, caplog: pytest.LogCaptureFixture) -> None:
    boundary.handler.handle(Message())
    assert "only SigningMessage is served" in caplog.text


def test_nobody_can_change_what_it_believes(boundary: Boundary) -> None:
    mine = Agreed()
    mine.commit(period(intent=replace(INTENT, nonce=9)))
    with pytest.raises(RuntimeError, match="bound already"):
        boundary.handler.bind(mine, "other", None, Memory())
    with pytest.raises(NotAgreed):
        boundary.ask(IntentRequest(replace(INTENT, nonce=9)))


def test_before_it_is_bound_it_signs_nothing(wallet: AeaWallet) -> None:
    handler = decision_maker(wallet)
    for request in (payload(), IntentRequest(INTENT), EXECUTION):
        message = SigningMessage(request)
        handler.handle(message)
        with pytest.raises(QuorateError):
            message.answer.result(timeout=0)


# ---- the key


def test_the_key_appears_in_no_text(boundary: Boundary, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    boundary.agreed.commit(period(intent=INTENT, signatures=(own_signature(),)))
    said = [repr(boundary.handler), str(boundary.handler), repr(vars(boundary.handler)), repr(boundary.handler.wallet)]
    broken = replace(EXECUTION, gas="many", nonce=-1)  # type: ignore[arg-type]
    for request in (payload(), payload(sequence=99), IntentRequest(replace(INTENT, nonce=1)), broken, None, EXECUTION):
        message = SigningMessage(request)  # type: ignore[arg-type]
        boundary.handler.handle(message)
        said += [repr(message), str(message), repr(message.answer)]
        if (error := message.answer.exception(timeout=0)) is not None:
            said += [repr(error), str(error), *traceback.format_exception(error)]
    boundary.handler.handle(Message())
    text = "\n".join([*said, caplog.text]).lower()
    for secret in (KEY.hex(), str(int.from_bytes(KEY, "big")), repr(KEY).lower()[2:-1], PASSPHRASE):
        assert secret not in text


# ---- with open-aea's thread


@pytest.fixture
def thread(boundary: Boundary) -> Iterator[DecisionMaker]:
    running = DecisionMaker(boundary.handler)
    running.start()
    yield running
    running.stop()


async def test_an_agent_gets_its_signature_or_the_refusal_through_open_aeas_queue(thread: DecisionMaker) -> None:
    signer = Signer(ME, thread.message_in_queue.put_nowait)
    assert recover(payload().digest(), await signer.sign(payload())) == ME
    assert recover(model_request().digest(), await signer.sign_request(model_request())) == ME
    with pytest.raises(NotAgreed):
        await signer.sign(payload(sequence=99))


async def test_requests_whose_acts_were_cancelled_do_not_end_the_thread(thread: DecisionMaker) -> None:
    signer = Signer(ME, thread.message_in_queue.put_nowait)
    for _ in range(50):
        asked = asyncio.create_task(signer.sign(payload()))
        await asyncio.sleep(0)
        asked.cancel()
    assert recover(payload().digest(), await asyncio.wait_for(signer.sign(payload()), 5)) == ME


def test_the_keystore_that_open_aea_opens_is_the_one_that_we_write(wallet: AeaWallet, tmp_path: Path) -> None:
    assert wallet.addresses == {"ethereum": ME}
    path = tmp_path / "k.json"
    Wallet.from_key(KEY).save_keystore(path, PASSPHRASE, scrypt_n=2)
    assert KEY.hex() not in path.read_text()
