"""contracts/test/OffenceProof.t.sol checks the very bytes that an agent keeps as the proof of an equivocation."""

from __future__ import annotations

import re
from pathlib import Path

from quorate.abci import UnsignedPayload
from quorate.abci.evidence import Equivocation
from quorate.abci.payload import SignedHeader
from quorate.testing.process import Key

SOLIDITY = (Path(__file__).parents[2] / "contracts/test/OffenceProof.t.sol").read_text()
KEY = Key("a member")


def _signed(body: bytes) -> SignedHeader:
    unsigned = UnsignedPayload("hello-1", 3, 17, "GreetRound", b"\x11" * 32, body)
    return unsigned.signed(KEY.address, KEY.sign_digest(unsigned.digest())).header


def test_the_contract_is_tested_with_the_proof_that_we_make() -> None:
    hexes = re.findall(r'hex"([0-9a-f]+)"', SOLIDITY.partition("// begin")[2].partition("// end")[0])
    proof = Equivocation.of("hello-1", _signed(b'"yes"'), _signed(b'"no"')).proof
    assert bytes.fromhex("".join(hexes)) == proof
    assert KEY.address in SOLIDITY
