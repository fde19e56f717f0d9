"""Paying operators without a transaction a call: the payments contract as a type, and the vouchers that it redeems.

A payer signs, with each answer, a voucher over all that it owes the operator in their channel so far; the operator
keeps the newest and redeems it when it likes. Amounts are in units of 1e-18 token, times in seconds since 1970.
contracts/src/interfaces/IInferencePayments.sol says the rest.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from eth_utils.address import is_checksum_address

from quorate.chain.abi import load_abi
from quorate.chain.client import At, Chain
from quorate.chain.revert import Refusal
from quorate.errors import PeerError
from quorate.nesting import load_json
from quorate.signatures import SIGNATURE_BYTES, domain_separator, from_hex, recover, typed_digest
from quorate.units import Address, Call, Hash, Wei

__all__ = ["Channel", "Closing", "InferencePayments", "Redemption", "SignedVoucher", "Voucher"]

_TYPE = (
    "Voucher(address payer,address operator,uint64 epoch,uint128 total,uint64 units,bytes32 receiptHash,uint64 expiry)"
)
_LONGEST_HEADER = 2048
_BITS = {"chain_id": 64, "epoch": 64, "total": 128, "units": 64, "expiry": 64}


class DigestSigner(Protocol):
    """What signs a voucher: a `Wallet`."""

    def sign_digest(self, digest: bytes) -> bytes:
        """The signature r, s, v (65 bytes) of a 32-byte digest."""
        ...


@dataclass(frozen=True)
class Channel:
    """What stands between one payer and one operator."""

    deposited: Wei
    """Put in, in this epoch."""
    claimed: Wei
    """Paid out to the operator, in this epoch."""
    epoch: int
    """How often the channel was closed; vouchers of an earlier epoch are worth nothing."""
    closable_at: int
    """From then on the payer may take the rest; 0 while it has not started to close."""

    @property
    def unclaimed(self) -> Wei:
        """What the operator can still be paid, and the payer gets back if it is not."""
        return Wei(self.deposited - self.claimed)


@dataclass(frozen=True, kw_only=True)
class Voucher:
    """What a payer signs: all that it owes the operator in this epoch of their channel, what was claimed included."""

    chain_id: int
    payments: Address
    """The contract that redeems it."""
    payer: Address
    operator: Address
    epoch: int
    total: Wei
    units: int
    """Tokens of text for which that is, in and out, in this epoch."""
    receipt_hash: Hash
    """Digest of the last receipt that this pays for."""
    expiry: int
    """The last second in which the chain redeems it."""

    def digest(self) -> bytes:
        """The 32 bytes to sign (EIP-712); raises ValueError where a number does not fit."""
        for name, bits in _BITS.items():
            if not 0 <= getattr(self, name) < 1 << bits:
                raise ValueError(f"{name} is {getattr(self, name)}; expected an unsigned number of {bits} bits")
        return typed_digest(
            _domain(self.chain_id, self.payments),
            _TYPE,
            _word(self.payer),
            _word(self.operator),
            _number(self.epoch),
            _number(self.total),
            _number(self.units),
            _word(self.receipt_hash),
            _number(self.expiry),
        )

    def signed(self, signer: DigestSigner) -> SignedVoucher:
        """This voucher with the payer's signature."""
        return SignedVoucher(self, signer.sign_digest(self.digest()))


class SignedVoucher(NamedTuple):
    """A voucher and the signature under it."""

    voucher: Voucher
    signature: bytes

    @property
    def signer(self) -> Address | None:
        """Whose key signed it; None if the signature is none."""
        return recover(self.voucher.digest(), self.signature)

    def refusal(self, channel: Channel, now: float) -> Refusal:
        """What the contract would say to it at that time with the channel as it is (dearest question last)."""
        voucher = self.voucher
        if voucher.epoch != channel.epoch:
            return Refusal.OTHER_EPOCH
        if now > voucher.expiry:
            return Refusal.EXPIRED
        if voucher.total <= channel.claimed:
            return Refusal.NOTHING_NEW
        if voucher.total > channel.deposited:
            return Refusal.NOT_COVERED
        return Refusal.NONE if self.signer == voucher.payer else Refusal.NOT_SIGNED

    def header(self) -> str:
        """The voucher and its signature as the value of an HTTP header."""
        voucher = {field.name: getattr(self.voucher, field.name) for field in fields(Voucher)}
        text = json.dumps({"voucher": voucher, "signature": "0x" + self.signature.hex()}, sort_keys=True)
        return base64.urlsafe_b64encode(text.encode()).decode()

    @classmethod
    def from_header(cls, value: str) -> SignedVoucher:
        """The voucher in a header; raises PeerError for anything but a complete one. Who signed it is not looked at."""
        if len(value) > _LONGEST_HEADER:
            raise PeerError(f"the voucher has {len(value)} characters; at most {_LONGEST_HEADER} are read")
        try:
            parts = load_json(base64.b64decode(value, altchars=b"-_", validate=True))
            if not isinstance(parts, dict) or parts.keys() != {"voucher", "signature"}:
                raise ValueError("expected the fields voucher and signature")
            return cls(_voucher_from(parts["voucher"]), from_hex(parts["signature"], SIGNATURE_BYTES))
        except (ValueError, binascii.Error) as error:
            raise PeerError(f"the voucher cannot be read: {error}") from None


@dataclass(frozen=True)
class Redemption:
    """What an operator was paid for one voucher."""

    payer: Address
    operator: Address
    epoch: int
    amount: Wei
    total: Wei
    units: int
    receipt_hash: Hash
    block: int
    transaction: Hash


@dataclass(frozen=True)
class Closing:
    """A payer has started to close a channel: what its operator has not redeemed at `closable_at` may be gone then."""

    payer: Address
    operator: Address
    epoch: int
    closable_at: int
    block: int


@dataclass(frozen=True)
class InferencePayments:
    """contracts/src/InferencePayments.sol: channels from payers to operators."""

    chain: Chain
    address: Address
    abi = load_abi("InferencePayments")

    async def channel(self, payer: Address, operator: Address, *, block: At = "latest") -> Channel:
        """What stands between the two; all zero if nothing ever did."""
        raw = await self.chain.read(self.address, self.abi, "channelOf", payer, operator, block=block)
        deposited, claimed, epoch, closable_at = raw
        return Channel(Wei(deposited), Wei(claimed), epoch, closable_at)

    async def close_delay(self) -> int:
        """Seconds from `start_close` to `close`: the time that an operator has to redeem."""
        return int(await self.chain.read(self.address, self.abi, "closeDelay"))

    async def token(self) -> Address:
        """The token that is paid with."""
        return Address(await self.chain.read(self.address, self.abi, "token"))

    async def digest_of(self, voucher: Voucher) -> bytes:
        """What a payer signs of this voucher, by the contract's own word."""
        return bytes(await self.chain.read(self.address, self.abi, "digestOf", _struct(voucher)))

    async def redemptions(
        self,
        from_block: int = 0,
        to_block: int | None = None,
        *,
        payer: Address | None = None,
        operator: Address | None = None,
    ) -> tuple[Redemption, ...]:
        """What was paid in these blocks, oldest first; of one payer or to one operator, if told."""
        logs = await self.chain.logs(
            self.address,
            self.abi,
            "Redeemed",
            from_block=from_block,
            to_block=to_block,
            topics=_topics(payer, operator),
        )
        return tuple(
            Redemption(
                a["payer"],
                a["operator"],
                a["epoch"],
                Wei(a["amount"]),
                Wei(a["total"]),
                a["units"],
                Hash("0x" + a["receiptHash"].hex()),
                log.block,
                log.transaction,
            )
            for log in logs
            for a in [log.arguments]
        )

    async def closings(
        self, from_block: int = 0, to_block: int | None = None, *, operator: Address | None = None
    ) -> tuple[Closing, ...]:
        """Channels that began to close in these blocks, oldest first; those of one operator, if told."""
        logs = await self.chain.logs(
            self.address,
            self.abi,
            "CloseStarted",
            from_block=from_block,
            to_block=to_block,
            topics=_topics(None, operator),
        )
        return tuple(
            Closing(a["payer"], a["operator"], a["epoch"], a["closableAt"], log.block)
            for log in logs
            for a in [log.arguments]
        )

    def voucher(
        self, payer: Address, operator: Address, *, epoch: int, total: Wei, units: int, receipt_hash: Hash, expiry: int
    ) -> Voucher:
        """A voucher for this contract on this chain."""
        return Voucher(
            chain_id=self.chain.chain_id,
            payments=self.address,
            payer=payer,
            operator=operator,
            epoch=epoch,
            total=total,
            units=units,
            receipt_hash=receipt_hash,
            expiry=expiry,
        )

    def deposit(self, payer: Address, operator: Address, amount: Wei) -> Call:
        """Put the caller's tokens into the payer's channel; they must have been approved for this contract."""
        return self._call("deposit", payer, operator, amount)

    def deposit_with_permit(self, operator: Address, amount: Wei, deadline: int, permit: bytes) -> Call:
        """The same for the caller itself with a permit (`Token.permit_digest`, signed): one transaction in all."""
        r, s, v = permit[:32], permit[32:64], permit[64]
        return self._call("depositWithPermit", operator, amount, deadline, v, r, s)

    def redeem(self, signed: SignedVoucher) -> Call:
        """Pay the operator what the voucher holds beyond the claims so far; anybody may send it."""
        return self._call("redeem", self._checked(signed), signed.signature)

    def redeem_many(self, operator: Address, signed: Sequence[SignedVoucher]) -> Call:
        """Pay the operator for 1 to 256 vouchers by one transfer; those that are worth nothing are passed over."""
        return self._call("redeemMany", operator, [self._checked(one) for one in signed], [s for _, s in signed])

    def start_close(self, operator: Address) -> Call:
        """Begin to close the caller's channel: no more deposits, and after `close_delay` it can `close`."""
        return self._call("startClose", operator)

    def close(self, operator: Address) -> Call:
        """Take back the rest of the caller's channel."""
        return self._call("close", operator)

    def _call(self, function: str, *arguments: Any) -> Call:
        return Call(self.address, Wei(0), self.abi.encode(function, *arguments))

    def _checked(self, signed: SignedVoucher) -> tuple[Any, ...]:
        """The voucher as the contract takes it; one for another contract or chain is a mistake of ours."""
        voucher = signed.voucher
        if (voucher.chain_id, voucher.payments) != (self.chain.chain_id, self.address):
            raise ValueError(
                f"a voucher for {voucher.payments} on chain {voucher.chain_id} is worth nothing to {self.address} on "
                f"chain {self.chain.chain_id}"
            )
        return _struct(voucher)


def _struct(voucher: Voucher) -> tuple[Any, ...]:
    return tuple(getattr(voucher, name) for name in _MEMBERS)


_MEMBERS = ("payer", "operator", "epoch", "total", "units", "receipt_hash", "expiry")


def _voucher_from(raw: object) -> Voucher:
    names = {field.name for field in fields(Voucher)}
    if not isinstance(raw, dict) or raw.keys() != names:
        raise ValueError(f"expected a voucher with the fields {', '.join(sorted(names))}")
    for name in ("payments", "payer", "operator"):
        if not (isinstance(raw[name], str) and is_checksum_address(raw[name])):
            raise ValueError(f"{name} is no checksummed address")
    from_hex(raw["receipt_hash"], 32)
    for name, bits in _BITS.items():
        if type(raw[name]) is not int or not 0 <= raw[name] < 1 << bits:
            raise ValueError(f"{name} is no unsigned number of {bits} bits")
    return Voucher(**raw)


def _topics(*parties: Address | None) -> tuple[bytes | None, ...]:
    return tuple(None if one is None else _word(one) for one in parties)


@lru_cache(64)
def _domain(chain_id: int, payments: Address) -> bytes:
    """Remembered: every voucher of a market has the same."""
    return domain_separator("Quorate payments", chain_id=chain_id, contract=payments)


def _word(text: str) -> bytes:
    return bytes.fromhex(text[2:]).rjust(32, b"\0")


def _number(value: int) -> bytes:
    return value.to_bytes(32, "big")
