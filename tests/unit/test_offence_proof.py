"""contracts/test checks the very bytes that an agent keeps as the proof of an offence."""

from __future__ import annotations

import re
from pathlib import Path

from quorate.abci import UnsignedPayload, UnsignedStatement
from quorate.abci.evidence import Equivocation, WrongAppHash
from quorate.abci.payload import SignedHeader
from quorate.abci.statement import SignedStatement
from quorate.testing.process import Key

FOLDER = Path(__file__).parents[2] / "contracts/test"
KEY = Key("a member")


def _require_in(file: str, proof: bytes) -> None:
    solidity = (FOLDER / file).read_text()
    hexes = re.findall(r'hex"([0-9a-f]+)"', solidity.partition("// begin")[2].partition("// end")[0])
    assert bytes.fromhex("".join(hexes)) == proof
    assert KEY.address in solidity


def _signed(body: bytes) -> SignedHeader:
    unsigned = UnsignedPayload("hello-1", 3, 17, "GreetRound", b"\x11" * 32, body)
    return unsigned.signed(KEY.address, KEY.sign_digest(unsigned.digest())).header


def test_the_contract_is_tested_with_the_proof_that_we_make() -> None:
    _require_in("OffenceProof.t.sol", Equivocation.of("hello-1", _signed(b'"yes"'), _signed(b'"no"')).proof)


def test_the_contract_is_tested_with_the_statement_that_we_sign() -> None:
    unsigned = UnsignedStatement("hello-1", 17, b"\x11" * 32, b"\x22" * 32)
    signature = KEY.sign_digest(unsigned.digest())
    signed = SignedStatement(KEY.address, unsigned.height, unsigned.block, unsigned.app_hash, signature)
    _require_in("AppHashProof.t.sol", WrongAppHash("hello-1", signed).proof)
