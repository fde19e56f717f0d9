"""An agent's way to the Safe: sign, send, and read what became of it (`quorate.rounds.settle.Settler`)."""

from __future__ import annotations

from collections.abc import Mapping

from quorate.chain import Chain, Safe, SafeTransaction
from quorate.rounds.settle import Intent, SafeSignature, Settlement
from quorate.units import Address, Hash, Wei

from .decision_maker import ExecutionRequest, IntentRequest
from .journal import Journal
from .signer import Signer

__all__ = ["SafeSettler"]

_NO_TX = Hash("0x" + "00" * 32)


class SafeSettler:
    """One agent's part in what the Safe does. Keys stay with the decision maker; it derives all bytes itself."""

    def __init__(self, chain: Chain, safe: Address, signer: Signer, journal: Journal) -> None:
        self._chain = chain
        self._safe = Safe(chain, safe)
        self._signer = signer
        self._journal = journal

    async def next_nonce(self) -> int:
        """The nonce that the Safe's next transaction will have."""
        return await self._safe.nonce()

    async def sign(self, intent: Intent) -> SafeSignature:
        """This owner's signature of the intent's Safe transaction."""
        signature = await self._signer.sign(IntentRequest(intent))
        digest = Hash("0x" + self._digest(intent).hex())
        self._journal.emit("signed", what="Safe transaction", digest=digest)
        return SafeSignature(digest=digest, signature="0x" + signature.hex())

    async def execute(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> Hash:
        """Send the agreed Safe transaction, at this agent's own expense.

        Its gas is estimated first, so that one which cannot succeed (its nonce was used a moment ago) is not sent.
        """
        own = {who: bytes.fromhex(one.signature[2:]) for who, one in signatures.items()}
        call = self._safe.execution(self._transaction(intent), own)
        prepared = await self._chain.prepare(call, self._signer.address)
        raw = await self._signer.sign(
            ExecutionRequest(
                nonce=prepared["nonce"],
                gas=prepared["gas"],
                max_fee_per_gas=Wei(prepared["maxFeePerGas"]),
                max_priority_fee_per_gas=Wei(prepared["maxPriorityFeePerGas"]),
            )
        )
        tx = await self._chain.send_raw(raw)
        self._journal.emit("sent", tx=tx, keeper=self._signer.address)
        return tx

    async def outcome(self, intent: Intent) -> Settlement | None:
        """What the Safe's events say of the intent, or that another call took its nonce; None while it is open."""
        digest = Hash("0x" + self._digest(intent).hex())
        found = await self._safe.outcome(digest)
        if found is None:
            if await self._safe.nonce() <= intent.nonce:
                return None
            found = await self._safe.outcome(digest)  # it may have been mined between the two questions
            if found is None:
                return Settlement(tx=_NO_TX, block=0, gas=0, success=False)
        settlement = Settlement(tx=found.tx, block=found.block, gas=found.gas, success=found.success)
        self._journal.emit("mined", tx=found.tx, gas=found.gas, block=found.block)
        return settlement

    def _transaction(self, intent: Intent) -> SafeTransaction:
        return SafeTransaction(call=intent.call, nonce=intent.nonce)

    def _digest(self, intent: Intent) -> bytes:
        return self._safe.digest(self._transaction(intent))
