"""The signing boundary: the only place that holds an agent's keys, and what it refuses to sign.

It believes two things: the owner's limits, and what the quorum agreed on (`Agreed`, committed blocks only). Everything
that is to be signed on-chain it derives itself from the agreed intent; a request cannot bring its own bytes.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, get_args

from aea.decision_maker.base import DecisionMakerHandler
from aea.protocols.base import Message

from quorate.abci import SignedPayload, UnsignedPayload, UnsignedStatement
from quorate.chain import SafeTransaction, is_owner_change
from quorate.errors import QuorateError
from quorate.model import ModelRequest
from quorate.model.fields import TASKS
from quorate.rounds.owners import OwnedMembership, owners_of, threshold_after
from quorate.rounds.settle import Intent, SafeSignature
from quorate.units import Address, Call, Wei

from .agreed import Agreed
from .signed import Memory

__all__ = [
    "AlreadySigned",
    "ExecutionRequest",
    "IntentRequest",
    "Limits",
    "NotAgreed",
    "OverLimit",
    "QuorateDecisionMaker",
    "SigningMessage",
    "SigningRequest",
]


class NotAgreed(QuorateError):
    """Somebody asked for a signature that no quorum stands behind."""


class AlreadySigned(NotAgreed):
    """Another payload was signed for this round and opening, maybe before a restart; `payload` is that one."""

    def __init__(self, payload: SignedPayload) -> None:
        super().__init__(f"another payload was signed for {payload.round} (round {payload.sequence})")
        self.payload = payload


class OverLimit(QuorateError):
    """The quorum agreed, but the owner of this agent does not allow it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the agent's owner allows, whatever the quorum says."""

    safe: Address
    chain_id: int
    calls: frozenset[tuple[Address, str]] = frozenset()
    """Which functions the Safe may call: (target, 4-byte selector as 0x-hex)."""
    max_value: Wei = Wei(0)
    """Most native coin that all calls of one intent may carry together."""
    max_gas: int = 1_000_000
    max_fee_per_gas: Wei = Wei(500 * 10**9)


@dataclass(frozen=True)
class IntentRequest:
    """Sign the Safe's transaction for `intent`, as one of its owners."""

    intent: Intent


@dataclass(frozen=True)
class ExecutionRequest:
    """Sign the Ethereum transaction that carries the agreed Safe transaction; this agent pays the gas."""

    nonce: int
    gas: int
    max_fee_per_gas: Wei
    max_priority_fee_per_gas: Wei


SigningRequest = UnsignedPayload | UnsignedStatement | IntentRequest | ExecutionRequest | ModelRequest


class SigningMessage(Message):
    """A request on its way to the decision maker; the signature (or the refusal) comes back by `answer`."""

    def __init__(self, request: SigningRequest) -> None:
        super().__init__()
        self.request = request
        self.answer: Future[bytes] = Future()


class QuorateDecisionMaker(DecisionMakerHandler):
    """open-aea's decision maker for a member of a quorum."""

    def __init__(self, identity: Any, wallet: Any, config: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(identity=identity, wallet=wallet, config=config, **kwargs)
        self._agreed: Agreed | None = None
        self._service_chain = ""
        self._limits: Limits | None = None
        self._memory = Memory()

    def bind(self, agreed: Agreed, service_chain: str, limits: Limits | None, memory: Memory) -> None:
        """Tell what to believe; once, before the first request. Without `limits` nothing on-chain is signed.

        `memory` holds what was signed before, in former lives, too.
        """
        if self._agreed is not None:
            raise RuntimeError("the decision maker was bound already; nobody may change what it believes")
        self._agreed, self._service_chain, self._limits = agreed, service_chain, limits
        self._memory = memory

    def handle(self, message: Message) -> None:
        """Answer one request: a signature, or the reason why not."""
        if not isinstance(message, SigningMessage):
            self.logger.error(f"refused a message of type {type(message).__name__}: only SigningMessage is served")
            return
        if not message.answer.set_running_or_notify_cancel():
            return  # the act that asked was cancelled meanwhile
        try:
            signature = self._sign(message.request)
        except Exception as error:  # handed to the one who asked, where it is raised
            message.answer.set_exception(error)
        else:
            message.answer.set_result(signature)

    def _sign(self, request: SigningRequest) -> bytes:
        if type(request) not in get_args(SigningRequest):  # a subclass could bring a digest of its own
            raise NotAgreed(f"a request of type {type(request).__name__}; nothing of that kind is ever signed")
        match request:
            case UnsignedPayload():
                return self._sign_payload(request)
            case UnsignedStatement():
                self._check_chain(request.chain_id)
                return self._sign_digest(request.digest())
            case ModelRequest():
                if request.path not in TASKS:
                    raise OverLimit(f"a request to {request.path}; an agent may ask {sorted(TASKS)}")
                return self._sign_digest(request.digest())
            case IntentRequest():
                limits = self._require_limits()
                transaction = self._agreed_transaction(limits, request.intent)
                return self._sign_digest(transaction.digest(limits.chain_id, limits.safe))
            case ExecutionRequest():
                return self._sign_execution(request)

    def _sign_payload(self, request: UnsignedPayload) -> bytes:
        """The signature; for one opening of a round always of the same payload, written down before it leaves."""
        self._check_payload(request)
        if "/" in request.round:  # a tick or an ask: there may be several, and they contradict nothing
            return self._sign_digest(request.digest())
        self._check_memory(request)
        known = self._memory.find(request)
        if known is not None and known.body != request.body:
            raise AlreadySigned(known)
        if known is None:
            known = request.signed(Address(self.identity.address), self._sign_digest(request.digest()))
            self._memory.add(known)
        return known.signature

    def _check_chain(self, chain_id: str) -> None:
        if chain_id != self._service_chain:
            raise NotAgreed(f"a word for the chain {chain_id!r}; this agent serves {self._service_chain!r}")

    def _check_payload(self, payload: UnsignedPayload) -> None:
        self._check_chain(payload.chain_id)
        period = self._agreed.period if self._agreed else None
        if period is not None and not period.sequence <= payload.sequence <= period.sequence + 2:
            raise NotAgreed(f"a payload for round {payload.sequence}; the quorum is in round {period.sequence}")

    def _check_memory(self, payload: UnsignedPayload) -> None:
        """Refuse what an earlier life may have said otherwise."""
        period = self._agreed.period if self._agreed else None
        if self._memory.was_lost:
            if period is None:
                raise NotAgreed(f"a payload for round {payload.sequence}; what was signed before is lost")
            self._memory.begin_at(period.sequence + 3)  # more than it can have signed ahead
        if payload.sequence < self._memory.oldest:
            raise NotAgreed(f"a payload for round {payload.sequence}; what was signed there may be forgotten")

    def _agreed_transaction(self, limits: Limits, intent: Intent) -> SafeTransaction:
        """The Safe's transaction for the agreed intent; refused unless `intent` is that one, and allowed.

        Its operation is never asked for: a plain call, or MultiSendCallOnly at its one address for several calls, each
        of which has passed the owner's limits. An intent without calls is a no-op and needs no permission; nor do the
        calls that make the members, whose change a quorum has agreed on, the Safe's owners, and no others; also again,
        where a reorg took the last change away.
        """
        state = self._agreed.period.state if self._agreed and self._agreed.period else None
        agreed: Intent | None = getattr(state, "intent", None)
        if agreed is None or intent != agreed:
            raise NotAgreed(f"the quorum's intent is {agreed}; the request is for {intent}")
        if not _makes_owners_members(limits, state, intent):
            _check_calls(limits, intent.calls)
        return SafeTransaction(intent.calls, intent.nonce)

    def _sign_execution(self, request: ExecutionRequest) -> bytes:
        """The signed raw transaction that executes the agreed intent with the agreed signatures."""
        limits = self._require_limits()
        state = self._agreed.period.state if self._agreed and self._agreed.period else None
        intent: Intent | None = getattr(state, "intent", None)
        agreed: tuple[tuple[Address, SafeSignature], ...] = getattr(state, "signatures", ())
        if intent is None or not agreed:
            raise NotAgreed("no intent with a quorum of signatures is agreed on")
        if request.gas > limits.max_gas or request.max_fee_per_gas > limits.max_fee_per_gas:
            raise OverLimit(
                f"gas {request.gas} at {request.max_fee_per_gas} wei; "
                f"the owner allows {limits.max_gas} at {limits.max_fee_per_gas}"
            )
        transaction = self._agreed_transaction(limits, intent)
        signatures = {who: bytes.fromhex(one.signature[2:]) for who, one in agreed}
        call = transaction.execution(limits.safe, signatures)
        signed = self._account.sign_transaction(
            {
                "type": 2,
                "chainId": limits.chain_id,
                "to": call.to,
                "value": call.value,
                "data": call.data,
                "nonce": request.nonce,
                "gas": request.gas,
                "maxFeePerGas": request.max_fee_per_gas,
                "maxPriorityFeePerGas": request.max_priority_fee_per_gas,
            }
        )
        return bytes(signed.raw_transaction)

    def _require_limits(self) -> Limits:
        if self._limits is None:
            raise OverLimit("this agent was started without a Safe; it signs nothing on-chain")
        return self._limits

    @property
    def _account(self) -> Any:
        return self.wallet.crypto_objects["ethereum"].entity

    def _sign_digest(self, digest: bytes) -> bytes:
        return bytes(self._account.unsafe_sign_hash(digest).signature)


def _makes_owners_members(limits: Limits, state: object, intent: Intent) -> bool:
    """Whether it changes the Safe's owners exactly as the members are agreed to change, or as they did last."""
    if not isinstance(state, OwnedMembership):
        return False
    change = state.change or (state.made if intent.nonce < state.reached else None)
    if change is None:
        return False
    come, go = owners_of(change)
    return is_owner_change(intent.calls, limits.safe, come=come, go=go, threshold=threshold_after(state))


def _check_calls(limits: Limits, calls: tuple[Call, ...]) -> None:
    for call in calls:
        if (call.to, call.data[:10]) not in limits.calls:
            raise OverLimit(f"the owner does not allow the Safe to call {call.data[:10]} of {call.to}")
    values = [call.value for call in calls]
    if min(values, default=0) < 0 or sum(values) > limits.max_value:
        raise OverLimit(f"calls that carry {sum(values)} wei; the owner allows {limits.max_value}")
