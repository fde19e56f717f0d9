"""Headers that an operator or a client sends: a receipt, the authorization of a request, or a voucher."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
from collections.abc import Iterable
from typing import Any

from quorate.chain import SignedVoucher, Voucher
from quorate.errors import Malformed, PeerError
from quorate.model import Authorization, ModelRequest, Receipt, SignedReceipt, hash_of
from quorate.units import Address, Hash, Wei
from tests.chain_of_agents.keys import Key
from tests.fuzz.engine import Target, label_of, mutate_bytes, mutate_json

__all__ = ["Receipts"]

_KEY, _OTHER = Key("operator"), Key("client")
_HASH = hash_of(b"")


class Receipts(Target):
    """`from_header` of `SignedReceipt`, `Authorization` and `SignedVoucher`: complete and exact, or refused."""

    name = "receipts"
    largest = 6_000

    def seeds(self) -> Iterable[bytes]:
        receipt = Receipt(
            chain_id=31337,
            registry=_KEY.address,
            operator=_KEY.address,
            client=_OTHER.address,
            model="m",
            manifest_hash=_HASH,
            request_hash=_HASH,
            answer_hash=_HASH,
            prompt_tokens=1,
            completion_tokens=2,
            issued_at=1_800_000_000,
            nonce=_HASH,
        )
        yield SignedReceipt(receipt, _KEY.sign_digest(receipt.digest())).header().encode()
        request = _request(_OTHER.address, 1_800_000_000, _HASH)
        signature = _OTHER.sign_digest(request.digest())
        voucher = Voucher(
            chain_id=31337,
            payments=_KEY.address,
            payer=_OTHER.address,
            operator=_KEY.address,
            epoch=1,
            total=Wei(10**18),
            units=3,
            receipt_hash=_HASH,
            expiry=1_800_000_000,
        )
        yield voucher.signed(_OTHER).header().encode()
        yield Authorization(_OTHER.address, request.time, request.nonce, signature).header().encode()

    def mutate(self, data: bytes, other: bytes, rng: random.Random) -> bytes:
        """Mostly the JSON inside, so that the outer layer is passed."""
        try:
            inner = base64.urlsafe_b64decode(data)
            if rng.random() < 0.6:
                text = json.dumps(mutate_json(json.loads(inner), rng))
                return base64.urlsafe_b64encode(text.encode())
            if rng.random() < 0.7:
                return base64.urlsafe_b64encode(mutate_bytes(inner, other, rng))
        except (ValueError, RecursionError):
            pass
        return mutate_bytes(data, other, rng)

    def run(self, data: bytes) -> str:
        header = data.decode("utf-8", "surrogateescape")  # as aiohttp reads a header
        return f"{_receipt(header)} / {_authorization(header)} / {_voucher(header)}"


def _receipt(header: str) -> str:
    try:
        signed = SignedReceipt.from_header(header)
    except Malformed as error:
        return label_of(error)
    _require_exact(signed.receipt)
    assert SignedReceipt.from_header(signed.header()) == signed, "a receipt that was read is written as another one"
    signer, later = signed.signer, dataclasses.replace(signed.receipt, issued_at=signed.receipt.issued_at ^ 1)
    assert signer is None or SignedReceipt(later, signed.signature).signer != signer, "a signature fits two receipts"
    return "signed" if signer else "unsigned"


def _authorization(header: str) -> str:
    try:
        who = Authorization.from_header(header)
    except PeerError as error:
        return _refused(error, header)
    _require_exact(who)
    assert Authorization.from_header(who.header()) == who, "an authorization that was read is written as another one"
    return "for it" if who.is_for(_request(who.client, who.time, who.nonce)) else "for another request"


def _voucher(header: str) -> str:
    try:
        signed = SignedVoucher.from_header(header)
    except PeerError as error:
        return label_of(error)
    _require_exact(signed.voucher)
    assert SignedVoucher.from_header(signed.header()) == signed, "a voucher that was read is written as another one"
    signer, later = signed.signer, dataclasses.replace(signed.voucher, epoch=signed.voucher.epoch ^ 1)
    assert signer is None or SignedVoucher(later, signed.signature).signer != signer, "a signature fits two vouchers"
    return "signed" if signer else "unsigned"


def _request(client: Address, time: int, nonce: Hash) -> ModelRequest:
    return ModelRequest(
        chain_id=31337,
        registry=_KEY.address,
        operator=_KEY.address,
        path="/v1",
        body_hash=_HASH,
        time=time,
        nonce=nonce,
    )


def _refused(error: PeerError, header: str) -> str:
    assert error.evidence or not header, "a refused header is no evidence"
    return label_of(error)


def _require_exact(found: Any) -> None:
    """Each field in the one form that its type promises."""
    fields = vars(found) if isinstance(found, Receipt | Voucher) else found._asdict()
    for name, value in fields.items():
        if name.endswith("_hash") or name == "nonce":
            assert len(value) == 66, f"{name} is {value!r}: no 32 bytes"
            assert set(value[2:]) <= set("0123456789abcdef"), f"{name} is {value!r}: no lower-case hex"
        if name == "signature":
            assert len(value) == 65, f"a signature of {len(value)} bytes"
