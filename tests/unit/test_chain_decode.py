"""What an action would do is read from its canonical bytes, or not at all."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from quorate.chain import AddressBook, TokenUnit, decode_action, load_abi, selector_of
from quorate.chain.decode import _KNOWN, _TABLE
from quorate.signatures import keccak
from quorate.units import Address, Wei

TOKEN, GOVERNOR, TIMELOCK = (Address("0x" + digit * 40) for digit in "123")
MALLORY = Address("0x000000000000000000000000000000000000dEaD")
BOOK = AddressBook({GOVERNOR: "the governor", TIMELOCK: "the timelock"}, {TOKEN: TokenUnit("QRT", 18)})
ONE = 10**18


def _data(signature: str, *arguments: object) -> str:
    types = signature.partition("(")[2][:-1]
    return selector_of(signature) + encode(types.split(",") if types else [], arguments).hex()


TRANSFER = _data("transfer(address,uint256)", MALLORY, 10 * ONE)


@pytest.mark.parametrize(
    ("target", "signature", "arguments", "kind", "text"),
    [
        (TOKEN, "transfer(address,uint256)", (MALLORY, 10 * ONE), "token_transfer",
         f"send 10 QRT from the treasury to {MALLORY}"),
        (MALLORY, "transfer(address,uint256)", (TOKEN, 7), "token_transfer",
         f"send 7 units of the unknown token {MALLORY} from the treasury to {TOKEN}"),
        (TOKEN, "transferFrom(address,address,uint256)", (GOVERNOR, MALLORY, ONE // 4), "token_transfer_from",
         f"take 0.25 QRT from the governor ({GOVERNOR}) and send it to {MALLORY}"),
        (TOKEN, "approve(address,uint256)", (MALLORY, 1234 * ONE), "token_approve",
         f"let {MALLORY} take up to 1,234 QRT from the treasury"),
        (TOKEN, "approve(address,uint256)", (MALLORY, 2**256 - 1), "token_approve",
         f"let {MALLORY} take every QRT that the treasury has or will ever have"),
        (TOKEN, "mint(address,uint256)", (MALLORY, ONE), "token_mint", f"mint 1 QRT for {MALLORY}"),
        (TOKEN, "burn(uint256)", (ONE,), "token_burn", "destroy 1 QRT of the treasury"),
        (TOKEN, "delegate(address)", (MALLORY,), "votes_delegate",
         f"give the votes of the {TOKEN} tokens that the treasury holds to {MALLORY}"),
        (TIMELOCK, "grantRole(bytes32,address)", (bytes(32), MALLORY), "role_grant",
         f"give the role DEFAULT_ADMIN_ROLE on the timelock ({TIMELOCK}) to {MALLORY}"),
        (TIMELOCK, "revokeRole(bytes32,address)", (keccak(text="PROPOSER_ROLE"), GOVERNOR), "role_revoke",
         f"take the role PROPOSER_ROLE on the timelock ({TIMELOCK}) away from the governor ({GOVERNOR})"),
        (TIMELOCK, "renounceRole(bytes32,address)", (b"\x07" * 32, TIMELOCK), "role_renounce",
         f"give up the role 0x{'07' * 32} on the timelock ({TIMELOCK}) that the timelock ({TIMELOCK}) has"),
        (TOKEN, "transferOwnership(address)", (MALLORY,), "ownership_transfer", f"make {MALLORY} the owner of {TOKEN}"),
        (TOKEN, "renounceOwnership()", (), "ownership_renounce", f"leave {TOKEN} without an owner for ever"),
        (GOVERNOR, "setVotingPeriod(uint32)", (1,), "governor_setting",
         f"set the time for votes of the governor ({GOVERNOR}) to 1 seconds"),
        (GOVERNOR, "updateTimelock(address)", (MALLORY,), "governor_setting",
         f"hand every power of the governor ({GOVERNOR}) to another timelock, {MALLORY}"),
        (TIMELOCK, "updateDelay(uint256)", (0,), "timelock_setting",
         f"set the waiting time of the timelock ({TIMELOCK}) to 0 seconds"),
        (TOKEN, "upgradeTo(address)", (MALLORY,), "upgrade", f"replace the code of {TOKEN} by that of {MALLORY}"),
        (TOKEN, "upgradeToAndCall(address,bytes)", (MALLORY, b"abc"), "upgrade",
         f"replace the code of {TOKEN} by that of {MALLORY} and call it with 3 bytes"),
        (TIMELOCK, "upgradeAndCall(address,address,bytes)", (TOKEN, MALLORY, b""), "upgrade",
         f"replace the code of {TOKEN} by that of {MALLORY}"),
    ],
)  # fmt: skip
def test_a_known_function_is_said_in_plain_words(
    target: Address, signature: str, arguments: tuple[object, ...], kind: str, text: str
) -> None:
    action = decode_action(target, Wei(0), _data(signature, *arguments), BOOK)
    assert (action.kind, action.function, action.text) == (kind, signature, text)
    shown = tuple("0x" + a.hex() if isinstance(a, bytes) else a for a in arguments)
    assert action.arguments == shown
    assert len(action.names) == len(action.arguments)


@pytest.mark.parametrize("row", _TABLE, ids=lambda row: row[1])
def test_every_function_of_the_table_has_words(row: tuple[str, str]) -> None:
    fragment = next(f for kind, f in _KNOWN.values() if (kind, f.name) == (row[0], row[1].partition("(")[0]))
    values = [{"address": MALLORY, "bytes": b"", "bytes32": bytes(32)}.get(kind, 1) for kind in fragment.types]
    action = decode_action(TOKEN, Wei(0), _data(fragment.signature, *values), BOOK)
    assert action.kind == row[0]
    assert len(action.text) > 10


def test_our_governors_and_timelocks_own_settings_are_all_in_the_table() -> None:
    """A privileged function that is not known would be shown as a bare selector."""
    signatures = {fragment.signature for _, fragment in _KNOWN.values()}
    names = {f.name: f for fs in load_abi("QuorateGovernor").functions.values() for f in fs}
    settings = [f for name, f in names.items() if name.startswith(("set", "update", "relay"))]
    timelock = load_abi("TimelockController")
    settings += [timelock.function(n, c) for n, c in (("updateDelay", 1), ("grantRole", 2), ("revokeRole", 2))]
    assert len(settings) >= 8
    assert {f.signature for f in settings} <= signatures


def test_a_relay_is_read_to_its_inner_call() -> None:
    inner = _data("grantRole(bytes32,address)", bytes(32), MALLORY)
    relay = _data("relay(address,uint256,bytes)", TIMELOCK, 0, bytes.fromhex(inner[2:]))
    action = decode_action(GOVERNOR, Wei(0), relay, BOOK)
    assert action.kind == "relay"
    granted = f"give the role DEFAULT_ADMIN_ROLE on the timelock ({TIMELOCK}) to {MALLORY}"
    assert action.text == f"make the governor ({GOVERNOR}) do this: {granted}"
    for _ in range(5):
        relay = _data("relay(address,uint256,bytes)", GOVERNOR, 0, bytes.fromhex(relay[2:]))
    assert decode_action(GOVERNOR, Wei(0), relay, BOOK).text.endswith("nested too deep to be shown")


def test_a_plain_payment_and_an_empty_call_are_told_apart() -> None:
    payment = decode_action(MALLORY, Wei(3 * ONE // 2), "0x", BOOK)
    assert (payment.kind, payment.amount, payment.argument("to")) == ("native_transfer", 3 * ONE // 2, MALLORY)
    assert payment.text == f"send 1.5 ETH from the treasury to {MALLORY}"
    assert decode_action(MALLORY, Wei(0), "0x", BOOK).kind == "empty_call"


def test_an_unknown_function_shows_its_selector_and_payment_and_no_guess() -> None:
    action = decode_action(MALLORY, Wei(ONE), "0xdeadbeef" + "00" * 40, BOOK)
    assert (action.kind, action.function, action.arguments) == ("unknown_function", "0xdeadbeef", ())
    assert (
        action.text
        == f"call the unknown function 0xdeadbeef of {MALLORY} with 40 bytes of arguments and a payment of 1 ETH"
    )


@pytest.mark.parametrize(
    "data",
    [
        TRANSFER + "00",
        TRANSFER + "00" * 32,
        TRANSFER[:-2],
        TRANSFER[:10],
        selector_of("transfer(address,uint256)")
        + "ff" * 12
        + "11" * 20
        + "00" * 31
        + "01",  # dirty bytes above the address
        _data("relay(address,uint256,bytes)", TOKEN, 0, b"")[:-64],
        "0xa9059c",
        "0x0g",
        "0xa9059cbb0",
    ],
    ids=[
        "a byte more",
        "a word more",
        "a byte less",
        "no arguments",
        "dirty address",
        "no tail",
        "short",
        "no hex",
        "half",
    ],
)
def test_input_that_is_not_canonical_is_undecodable_and_names_no_function(data: str) -> None:
    action = decode_action(TOKEN, Wei(0), data, BOOK)
    assert (action.kind, action.function, action.arguments) == ("undecodable", None, ())
    assert "cannot be read" in action.text


def test_an_offset_that_points_elsewhere_is_undecodable() -> None:
    """Two encodings of one call would let two readers see two actions."""
    honest = bytes.fromhex(_data("upgradeToAndCall(address,bytes)", MALLORY, b"abcd")[10:])
    moved = honest[:32] + (96).to_bytes(32, "big") + honest[64:96] + honest[64:]
    data = selector_of("upgradeToAndCall(address,bytes)") + moved.hex()
    assert decode_action(TOKEN, Wei(0), data, BOOK).kind == "undecodable"


def test_a_payment_to_a_function_that_takes_none_is_undecodable() -> None:
    action = decode_action(TOKEN, Wei(1), TRANSFER, BOOK)
    assert (action.kind, action.function) == ("undecodable", None)
    assert "with a payment of 0.000000000000000001 ETH" in action.text


def test_names_come_from_the_readers_book_only() -> None:
    assert decode_action(TOKEN, Wei(0), TRANSFER).text.startswith(f"send {10 * ONE} units of the unknown token {TOKEN}")


@given(st.binary(max_size=200), st.integers(0, 2**96))
def test_no_input_makes_it_fail_and_what_is_read_is_all_there_was(data: bytes, value: int) -> None:
    for head in (b"", *_KNOWN):
        action = decode_action(TOKEN, Wei(value), "0x" + (head + data).hex(), BOOK)
        if action.arguments and action.kind != "native_transfer":
            assert action.function is not None
            again = _data(
                action.function,
                *(bytes.fromhex(a[2:]) if isinstance(a, str) and len(a) != 42 else a for a in action.arguments),
            )
            assert again == "0x" + (head + data).hex()


@given(st.integers(0, 2**160 - 1), st.integers(0, 2**256 - 1))
def test_a_transfer_reads_back_exactly(to: int, amount: int) -> None:
    account = "0x" + to.to_bytes(20, "big").hex()
    action = decode_action(TOKEN, Wei(0), _data("transfer(address,uint256)", account, amount), BOOK)
    assert (action.kind, action.amount) == ("token_transfer", amount)
    assert str(action.argument("to")).lower() == account
