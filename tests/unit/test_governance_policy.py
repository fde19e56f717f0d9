"""The delegate's policy: what code rules about a proposal's decoded actions, and a policy file that is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from quorate.chain import Action, AddressBook, TokenUnit, decode_action, selector_of
from quorate.errors import ConfigError
from quorate.signatures import keccak
from quorate.units import Address, Bps, Hash, Wei
from skills.governance.policy import Policy, Ruling, load_policy, rule_on

ONE = 10**18
TOKEN, TREASURY, GOVERNOR, STRANGER = (Address("0x" + digit * 40) for digit in "1234")
BOOK = AddressBook({TREASURY: "the treasury", GOVERNOR: "the governor"}, {TOKEN: TokenUnit("QRT", 18)})
POLICY = Policy(
    name="test",
    max_payment=Wei(1_000 * ONE),
    margin=Bps(300),
    welcome=("Pay a contributor.",),
    forbidden=("Mint tokens.",),
    digest=Hash("0x" + "00" * 32),
)
SHIPPED = Path(__file__).parents[2] / "dao" / "policies" / "treasury.yaml"


def action(target: Address, signature: str = "", *arguments: object, value: int = 0, data: str = "") -> Action:
    """What the chain's bytes decode to: the policy never sees anything else."""
    if signature:
        types = signature.partition("(")[2][:-1]
        data = selector_of(signature) + encode(types.split(",") if types else [], arguments).hex()
    return decode_action(target, Wei(value), data or "0x", BOOK)


def pay(amount: int, to: Address = STRANGER, token: Address = TOKEN) -> Action:
    return action(token, "transfer(address,uint256)", to, amount)


def ruled(*actions: Action) -> Ruling:
    return rule_on(POLICY, TOKEN, TREASURY, actions)


GRANT = action(TREASURY, "grantRole(bytes32,address)", keccak(text="PROPOSER_ROLE"), STRANGER)
NOTHING = action(STRANGER)
SECRET_CALL = selector_of("transfer(address,uint256)")


@pytest.mark.parametrize(
    ("one", "verdict", "rule"),
    [
        (pay(10 * ONE), "ALLOWED", "payment-limit"),
        (pay(1_000 * ONE), "ALLOWED", "payment-limit"),
        (pay(1_000 * ONE + 1), "FORBIDDEN", "payment-limit"),
        (pay(2**256 - 1), "FORBIDDEN", "payment-limit"),
        (pay(ONE, to=TREASURY), "OPEN", "payment-to-itself"),
        (pay(ONE, to=TOKEN), "OPEN", "payment-to-itself"),
        (pay(2_000 * ONE, to=TOKEN), "FORBIDDEN", "payment-limit"),  # tokens sent to the token are lost
        (pay(ONE, token=STRANGER), "OPEN", "not-covered"),
        (action(STRANGER, value=ONE), "OPEN", "not-covered"),
        (NOTHING, "OPEN", "not-covered"),
        (action(TOKEN, "approve(address,uint256)", STRANGER, 1), "FORBIDDEN", "token_approve"),
        (action(TOKEN, "transferFrom(address,address,uint256)", TREASURY, STRANGER, 1), "FORBIDDEN",
         "token_transfer_from"),
        (action(TOKEN, "mint(address,uint256)", STRANGER, 1), "FORBIDDEN", "token_mint"),
        (action(TOKEN, "burn(uint256)", 1), "FORBIDDEN", "token_burn"),
        (action(TOKEN, "delegate(address)", STRANGER), "FORBIDDEN", "votes_delegate"),
        (GRANT, "FORBIDDEN", "role_grant"),
        (action(TREASURY, "revokeRole(bytes32,address)", bytes(32), GOVERNOR), "FORBIDDEN", "role_revoke"),
        (action(TREASURY, "renounceRole(bytes32,address)", bytes(32), TREASURY), "FORBIDDEN", "role_renounce"),
        (action(TOKEN, "transferOwnership(address)", STRANGER), "FORBIDDEN", "ownership_transfer"),
        (action(TOKEN, "renounceOwnership()"), "FORBIDDEN", "ownership_renounce"),
        (action(TREASURY, "updateDelay(uint256)", 0), "FORBIDDEN", "timelock_setting"),
        (action(GOVERNOR, "updateTimelock(address)", STRANGER), "FORBIDDEN", "governor_setting"),
        (action(GOVERNOR, "setVotingPeriod(uint32)", 60), "OPEN", "not-covered"),
        (action(GOVERNOR, "relay(address,uint256,bytes)", STRANGER, 1, b""), "FORBIDDEN", "relay"),
        (action(TOKEN, "upgradeTo(address)", STRANGER), "FORBIDDEN", "upgrade"),
        (action(STRANGER, data="0xdeadbeef"), "FORBIDDEN", "unknown_function"),
    ],
)  # fmt: skip
def test_each_kind_of_action_has_its_ruling(one: Action, verdict: str, rule: str) -> None:
    ruling = ruled(one)
    assert (ruling.verdict, ruling.rule) == (verdict, rule)
    assert ruling.reason


@pytest.mark.parametrize(
    "data",
    ["0x", SECRET_CALL + "00" * 63, SECRET_CALL + "00" * 65, "0xa9", "0xnothex", SECRET_CALL + "ff" * 64],
    ids=["nothing", "short", "long", "no selector", "no hex", "dirty"],
)
def test_calldata_that_cannot_be_read_is_never_supported(data: str) -> None:
    ruling = ruled(action(TOKEN, data=data))
    assert ruling.verdict == ("OPEN" if data == "0x" else "FORBIDDEN")


def test_a_payment_that_hides_in_a_token_transfers_value_is_opposed() -> None:
    transfer = SECRET_CALL + encode(["address", "uint256"], [STRANGER, ONE]).hex()
    assert ruled(decode_action(TOKEN, Wei(1), transfer, BOOK)).rule == "undecodable"


def test_a_payment_that_rides_on_an_unknown_function_is_opposed() -> None:
    assert ruled(action(STRANGER, data="0xdeadbeef", value=ONE)).verdict == "FORBIDDEN"


def test_the_payments_of_one_proposal_are_added_so_splitting_gains_nothing() -> None:
    assert ruled(*[pay(100 * ONE)] * 10).verdict == "ALLOWED"
    assert ruled(*[pay(100 * ONE)] * 10, pay(1)).verdict == "FORBIDDEN"


def test_an_action_that_is_left_to_people_does_not_carry_a_payment_past_the_limit() -> None:
    assert ruled(pay(2_000 * ONE), NOTHING).verdict == "FORBIDDEN"
    assert ruled(NOTHING, *[pay(ONE * 600)] * 2).rule == "payment-limit"


def test_a_payment_to_the_treasury_itself_is_not_spent() -> None:
    assert ruled(pay(2_000 * ONE, to=TREASURY)).verdict == "OPEN"


def test_the_same_name_at_another_contract_is_no_payment_of_ours() -> None:
    assert ruled(pay(ONE), pay(ONE, token=STRANGER)).verdict == "OPEN"


def test_a_proposal_without_actions_is_left_to_people() -> None:
    assert ruled() == Ruling("OPEN", "no-action", "it changes nothing on-chain: people decide")


@given(st.permutations([pay(ONE), NOTHING, GRANT]), st.integers(0, 3))
def test_the_strictest_ruling_wins_wherever_it_stands(actions: list[Action], kept: int) -> None:
    chosen = actions[:kept]
    expected = "FORBIDDEN" if GRANT in chosen else "OPEN" if NOTHING in chosen or not chosen else "ALLOWED"
    assert ruled(*chosen).verdict == expected


def test_what_a_proposal_says_of_itself_is_not_asked() -> None:
    """`rule_on` takes decoded actions; the words in them are ours, and changing them changes no verdict."""
    assert ruled(replace(GRANT, text="pay a contributor for finished work")).verdict == "FORBIDDEN"


def test_the_shipped_policy_is_read_with_its_files_hash() -> None:
    policy = load_policy(SHIPPED)
    assert (policy.name, policy.max_payment, policy.margin) == ("treasury", 1_000 * ONE, 300)
    assert policy.digest == "0x" + keccak(SHIPPED.read_bytes()).hex()
    assert len(policy.welcome) >= 5
    assert len(policy.forbidden) >= 5


GOOD: dict[str, Any] = {
    "name": "p",
    "max_payment": str(ONE),
    "margin_bps": 300,
    "welcome": ["Pay for work."],
    "forbidden": ["Mint tokens."],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "p.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**GOOD, **changes}.items() if value is not ...}))
    return path


def test_a_whole_number_may_be_plain_or_in_quotes(tmp_path: Path) -> None:
    assert load_policy(written(tmp_path)).max_payment == ONE
    assert load_policy(written(tmp_path, max_payment=ONE)).max_payment == ONE


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_payment": ...}, "max_payment"),
        ({"max_paymnet": 1}, "max_paymnet"),
        ({"max_payment": 1.5e21}, r"max_payment is 1.5e\+21; expected a whole number"),
        ({"max_payment": -1}, "max_payment is -1"),
        ({"max_payment": True}, "max_payment is True"),
        ({"max_payment": "9" * 5_000}, "max_payment is '999"),
        ({"max_payment": "1e18"}, "max_payment is '1e18'"),
        ({"margin_bps": 0}, "margin_bps is 0; expected a whole number from 1 to 10000"),
        ({"margin_bps": 10_001}, "margin_bps is 10001"),
        ({"welcome": []}, r"welcome is \[\]; expected a list of sentences"),
        ({"welcome": "Pay."}, "welcome is 'Pay.'"),
        ({"forbidden": [" "]}, r"forbidden\[0\] is ' '; expected a text"),
        ({"forbidden": [{"Mint": "tokens"}]}, r"forbidden\[0\] is {"),
        ({"name": None}, "name is None"),
    ],
)
def test_a_wrong_field_of_a_policy_is_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_policy(written(tmp_path, **changes))
    assert "p.yaml" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"name", b"name: [", b"\xff\xfe\x00", b"name: !!python/object:os.x"])
def test_a_file_that_holds_no_policy_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_policy(tmp_path / "p.yaml")


def test_a_policy_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_policy(tmp_path / "nowhere.yaml")
