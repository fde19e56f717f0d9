"""An agent's way to the Safe: sign, send, and read what became of it (`quorate.rounds.settle.Settler`).

The rules that hold here:
- This account has one transaction in flight at most: a new one takes the nonce of what is not mined and replaces it.
- A transaction is remembered before it is sent; whatever the answer was, its hash is looked for before anything else is
  signed. Should this process forget it, the Safe's nonce still lets the calls happen once.
- No fee goes over the owner's ceiling. The chain's troubles never keep this agent from reporting an outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quorate.chain import Chain, Execution, Fees, NonceTooLow, Safe, SafeTransaction, owner_calls
from quorate.errors import ChainError, Reverted, Underpriced
from quorate.members import Change
from quorate.rounds.owners import owners_of
from quorate.rounds.settle import Intent, SafeSignature, Settlement
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei

from .decision_maker import ExecutionRequest, IntentRequest, OverLimit
from .journal import Journal
from .signer import Signer

__all__ = ["SafeSettler"]

REORG_BLOCKS = 64
"""An intent may be mined in a block this far *before* the one at which it was agreed: a reorg rewinds the numbers."""
_TRIES = 10  # replacing a transaction of an earlier life, whose fees are forgotten; the next push goes on


@dataclass
class _Sent:
    """A transaction of this agent's own that may be on its way."""

    hash: Hash
    raw: bytes
    nonce: int
    fees: Fees
    intent: Intent
    since: float


class SafeSettler:
    """One agent's part in what the Safe does. Keys stay with the decision maker; it derives all bytes itself.

    `confirmations`: how many blocks must stand on top of an outcome before it is final. A transaction that is not mined
    after `reprice_s` is replaced by one with higher fees, never above `ceiling` (per unit of gas).
    """

    def __init__(
        self,
        chain: Chain,
        safe: Address,
        signer: Signer,
        journal: Journal,
        *,
        confirmations: int = 0,
        ceiling: Wei = Wei(500 * 10**9),
        reprice_s: float = 15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._safe = Safe(chain, safe)
        self._signer = signer
        self._journal = journal
        self._confirmations = confirmations
        self._ceiling = ceiling
        self._reprice_s = reprice_s
        self._clock = clock
        self._sent: list[_Sent] = []
        self._succeeds: tuple[Intent, int] | None = None
        self._ready: tuple[Intent, Mapping[Address, SafeSignature], Call] | None = None
        self._refused: tuple[int, Fees] | None = None
        self._told: set[Hash] = set()
        self._said = ""
        self._span = self._least_span = max(REORG_BLOCKS, confirmations)

    async def next_nonce(self) -> tuple[int, int]:
        """The nonce that the Safe's next transaction will have, and the block in which that was read.

        Raises ChainError while a reorg within the configured depth could still change it.
        """
        nonce, block = await self.newest()
        if self._confirmations and await self._safe.nonce(block=self._deep(block)) != nonce:
            raise ChainError(f"the Safe's nonce {nonce} is younger than {self._confirmations} blocks")
        return nonce, block

    async def newest(self) -> tuple[int, int]:
        """As `next_nonce`, however young that nonce is."""
        block = await self._chain.block_number()
        return await self._safe.nonce(block=block), block

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        """Whether the Safe could make the calls at the end of `block` (of the newest if not told)."""
        if block is not None and self._succeeds == (intent, block):
            return True
        try:
            await self._safe.simulate(intent.calls, block="latest" if block is None else block)
        except Reverted as error:
            self._journal.waiting("calls that would succeed", error)
            return False
        self._succeeds = None if block is None else (intent, block)
        return True

    async def sign(self, intent: Intent) -> SafeSignature:
        """This owner's signature of the intent's Safe transaction."""
        signature = await self._signer.sign(IntentRequest(intent))
        digest = self._digest(intent)
        self._journal.emit("signed", what="Safe transaction", digest=digest)
        return SafeSignature(digest=digest, signature="0x" + signature.hex())

    async def is_owner(self) -> bool:
        """Whether this agent is an owner of the Safe in the newest block."""
        return self._signer.address in await self._safe.owners()

    async def push(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        """See to it that a transaction with the signed intent is mined, at this agent's own expense.

        Call it again and again: it looks for what was sent before, sends again what was dropped, and replaces what
        waits too long. Only the decision maker's NotAgreed is raised; other troubles are told and wait for the next
        call.
        """
        try:
            await self._push(intent, self._execution(intent, signatures))
        except (ChainError, OverLimit) as error:
            self._tell(error)

    async def owner_calls(self, change: Change, threshold: int) -> tuple[Call, ...]:
        """What the Safe has to call of itself, by its owners now, for an agreed change of members."""
        come, go = owners_of(change)
        owners, now = await self._safe.owners(), await self._safe.threshold()
        return owner_calls(self._safe.address, owners, now, come=come, go=go, threshold=threshold)

    async def outcome(self, unsettled: tuple[Intent, ...], *, final: bool = False) -> Settlement | None:
        """What used up the nonce of these intents; None while it is open. `final`: `confirmations` blocks ago."""
        head = await self._chain.block_number()
        at, nonce = self._deep(head) if final else head, unsettled[0].nonce
        if await self._safe.nonce(block=at) <= nonce:  # one small question while it is open
            return None
        begin = max(min(intent.block for intent in unsettled) - self._span, 0)
        digests = [self._digest(intent) for intent in unsettled]
        found = await self._find(digests, nonce, begin, at)
        if found is None:  # a node that lags behind another, or something older than we look for: never guess
            self._span *= 2
            return None
        self._span = self._least_span
        if found.tx not in self._told:
            self._told.add(found.tx)
            self._journal.emit("mined", tx=found.tx, gas=found.gas, block=found.block)
        which = digests.index(found.digest) if found.digest in digests else -1
        return Settlement(which, found.tx, found.block, found.gas, found.success, found.sender, found.digest)

    async def _find(self, digests: list[Hash], nonce: int, begin: int, end: int) -> Execution | None:
        for digest in digests:
            if found := await self._safe.outcome(digest, begin, end):
                return found
        return await self._safe.execution_at(nonce, begin, end)

    async def _push(self, intent: Intent, call: Call) -> None:
        if await self._is_any_mined(intent):
            return
        nonce = await self._chain.transaction_count(self._signer.address, "latest")
        waiting = next((sent for sent in reversed(self._sent) if sent.nonce == nonce), None)
        if waiting is None or waiting.intent != intent:
            await self._send_new(intent, call, nonce, waiting)
        elif self._clock() - waiting.since < self._reprice_s or not await self._replace(waiting, call):
            await self._chain.send_raw(waiting.raw)  # it may have been dropped, or never have arrived

    async def _is_any_mined(self, intent: Intent) -> bool:
        """Whether a transaction of ours that carries the intent is in a block, and did it or fails no more."""
        for sent in self._sent:
            if sent.intent == intent:
                receipt = await self._chain.receipt(sent.hash)
                if receipt is not None and receipt.succeeded:
                    return True
        return False

    async def _send_new(self, intent: Intent, call: Call, nonce: int, waiting: _Sent | None) -> None:
        gas = await self._chain.estimate(call, self._signer.address) * 5 // 4  # what cannot succeed is not sent
        fees = await self._current_fees()
        if waiting is not None:
            fees = _higher(fees, waiting.fees.bumped(self._ceiling))
        refused, self._refused = self._refused, None  # at the ceiling it begins anew: fees may have fallen
        if refused is not None and refused[0] == nonce:
            fees = _higher(fees, refused[1])
        for _ in range(_TRIES):
            try:
                await self._send(intent, nonce, gas, fees)
                return
            except Underpriced:  # something of ours waits at this nonce that we have forgotten
                fees = fees.bumped(self._ceiling)
        self._refused = (nonce, fees)
        raise Underpriced(f"a fee of {fees.maximum} wei does not replace what waits at nonce {nonce}")

    async def _replace(self, waiting: _Sent, call: Call) -> bool:
        """Send it with an eighth more, and at least what the chain asks for now; False where the ceiling forbids."""
        gas = await self._chain.estimate(call, self._signer.address) * 5 // 4
        try:
            fees = _higher(await self._current_fees(), waiting.fees.bumped(self._ceiling))
            await self._send(waiting.intent, waiting.nonce, gas, fees)
        except Underpriced as error:
            self._tell(error)
            return False
        return True

    async def _send(self, intent: Intent, nonce: int, gas: int, fees: Fees) -> None:
        raw = await self._signer.sign(ExecutionRequest(nonce, gas, fees.maximum, fees.priority))
        sent = _Sent(Hash("0x" + keccak(raw).hex()), raw, nonce, fees, intent, self._clock())
        self._sent = [one for one in self._sent if one.intent == intent or one.nonce == nonce] + [sent]
        try:
            await self._chain.send_raw(raw)
        except (Underpriced, NonceTooLow):  # surely not accepted; any other failure may have come after acceptance
            self._sent.remove(sent)
            raise
        self._said = ""
        self._journal.emit("sent", tx=sent.hash, keeper=self._signer.address)

    async def _current_fees(self) -> Fees:
        """What is mined soon, under the ceiling; raises Underpriced where the chain asks for more."""
        fees = await self._chain.fees()
        base = (fees.maximum - fees.priority) // 2
        if base + 1 > self._ceiling:
            raise Underpriced(f"a unit of gas costs {base} wei; the owner allows {self._ceiling}")
        return Fees(Wei(min(fees.maximum, self._ceiling)), Wei(min(fees.priority, self._ceiling)))

    def _tell(self, error: Exception) -> None:
        if str(error) != self._said:  # it is polled; what stays the same is told once
            self._said = str(error)
            self._journal.waiting("the Safe's transaction", error)

    def _deep(self, head: int) -> int:
        return max(head - self._confirmations, 0)

    def _digest(self, intent: Intent) -> Hash:
        return Hash("0x" + self._safe.digest(_transaction(intent)).hex())

    def _execution(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> Call:
        if self._ready is None or self._ready[:2] != (intent, signatures):
            own = {who: bytes.fromhex(one.signature[2:]) for who, one in signatures.items()}
            self._ready = (intent, signatures, self._safe.execution(_transaction(intent), own))
        return self._ready[2]


def _transaction(intent: Intent) -> SafeTransaction:
    return SafeTransaction(intent.calls, intent.nonce)


def _higher(one: Fees, other: Fees) -> Fees:
    return Fees(Wei(max(one.maximum, other.maximum)), Wei(max(one.priority, other.priority)))
