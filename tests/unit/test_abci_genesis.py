"""Homes, keys and the genesis: in CometBFT's formats, and nobody enters another's address."""

from __future__ import annotations

import base64
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quorate.abci import Genesis, Member, Store, make_identity, make_testnet
from quorate.abci.validator import forget_blocks
from quorate.errors import ConfigError
from tests.chain_of_agents.keys import Key, keys
from tests.chain_of_agents.services import counting, on_demand

PORTS = [30001, 30002, 30003, 30004]


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    return [tmp_path / str(index) for index in range(4)]


def _testnet(homes: list[Path]) -> Genesis:
    return make_testnet(homes, chain_id="chain-1", service=counting, signers=keys(4), ports=PORTS)


def test_a_testnet_has_what_cometbft_reads(homes: list[Path]) -> None:
    genesis = _testnet(homes)
    for home, port in zip(homes, PORTS, strict=True):
        key = json.loads((home / "config/priv_validator_key.json").read_text())
        secret = base64.b64decode(key["priv_key"]["value"])
        assert Ed25519PrivateKey.from_private_bytes(secret[:32]).public_key().public_bytes_raw() == secret[32:]
        assert base64.b64decode(key["pub_key"]["value"]) == secret[32:]
        assert key["address"] in {member.validator_address for member in genesis.members}
        for private in ("config/priv_validator_key.json", "config/node_key.json"):
            assert (home / private).stat().st_mode & 0o077 == 0
        config = tomllib.loads((home / "config/config.toml").read_text())
        assert config["p2p"]["laddr"] == f"tcp://127.0.0.1:{port}"
        peers = config["p2p"]["persistent_peers"].split(",")
        assert {peer.rpartition(":")[2] for peer in peers} == {str(p) for p in PORTS if p != port}
        assert (config["p2p"]["pex"], config["filter_peers"]) == (False, True)
    documents = {(home / "config/genesis.json").read_text() for home in homes}
    assert len(documents) == 1
    document = json.loads(documents.pop())
    assert [validator["power"] for validator in document["validators"]] == ["20"] * 4
    assert document["consensus_params"]["abci"]["vote_extensions_enable_height"] == "1"
    assert Genesis.load(homes[2]) == genesis


def test_keys_that_are_there_are_never_replaced(tmp_path: Path) -> None:
    """A validator that lost its signing state could sign two blocks of one height."""
    first = make_identity(tmp_path)
    (tmp_path / "data/priv_validator_state.json").write_text('{"height": "7", "round": 0, "step": 3}')
    assert make_identity(tmp_path) == first
    assert "7" in (tmp_path / "data/priv_validator_state.json").read_text()
    (tmp_path / "config/node_key.json").write_text("{}")
    with pytest.raises(ConfigError, match="no ed25519 key"):
        make_identity(tmp_path)


def test_nobody_can_bind_his_validator_to_anothers_address(homes: list[Path]) -> None:
    genesis = _testnet(homes)
    victim, *others = genesis.members
    mine = make_identity(homes[0].parent / "attacker")
    bound_by_me = Member.bind(mine, "chain-1", Key("attacker"))
    stolen = replace(bound_by_me, address=victim.address)
    for wrong in (
        stolen,
        replace(victim, validator_key=bound_by_me.validator_key),
        replace(victim, node_id=bound_by_me.node_id),
        replace(victim, binding="00" * 65),
        replace(victim, binding="no hex"),
        replace(victim, validator_key="00"),
    ):
        with pytest.raises(ConfigError, match="the signature is"):
            replace(genesis, members=(wrong, *others)).check(counting)


def test_a_binding_for_another_chain_is_refused(homes: list[Path]) -> None:
    with pytest.raises(ConfigError, match="genesis of chain-2"):
        replace(_testnet(homes), chain_id="chain-2").check(counting)


def test_a_genesis_of_another_service_with_doubles_or_unsorted_is_refused(homes: list[Path]) -> None:
    genesis = _testnet(homes)
    with pytest.raises(ConfigError, match="this code is on_demand"):
        genesis.check(on_demand)
    with pytest.raises(ConfigError, match="order"):
        replace(genesis, members=genesis.members[::-1]).check(counting)
    with pytest.raises(ConfigError, match="share"):
        replace(genesis, members=(genesis.members[0], *genesis.members)).check(counting)
    with pytest.raises(ConfigError, match="no members"):
        replace(genesis, members=()).check(counting)
    with pytest.raises(ConfigError, match="1 to 50 bytes"):
        replace(genesis, chain_id="x" * 51).check(counting)


def test_a_broken_genesis_file_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"genesis\.json is not the genesis"):
        Genesis.load(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/genesis.json").write_text('{"chain_id": "x"}')
    with pytest.raises(ConfigError, match="app_state"):
        Genesis.load(tmp_path)


def test_as_many_homes_as_signers_and_ports(homes: list[Path]) -> None:
    with pytest.raises(ConfigError, match="4 homes, 3 signers and 4 ports"):
        make_testnet(homes, chain_id="c", service=counting, signers=keys(3), ports=PORTS)


def test_a_store_keeps_the_last_value_and_belongs_to_one_chain(tmp_path: Path) -> None:
    store = Store(tmp_path / "app.db", "chain-1")
    assert store.load() is None
    store.save(b"one")
    store.save(b"two")
    again = Store(tmp_path / "app.db", "chain-1")  # the first is still open: as after kill -9
    assert again.load() == b"two"
    again.close()
    store.close()
    with pytest.raises(ConfigError, match="belongs to the chain chain-1; this is chain-2"):
        Store(tmp_path / "app.db", "chain-2")


def test_a_store_says_whether_its_state_came_from_peers_until_the_next_one_is_saved(tmp_path: Path) -> None:
    store = Store(tmp_path / "app.db", "chain-1")
    store.save(b"own")
    assert not store.is_adopted
    store.adopt(b"theirs")
    again = Store(tmp_path / "app.db", "chain-1")
    assert (again.load(), again.is_adopted) == (b"theirs", True)
    again.save(b"own")
    assert (again.load(), again.is_adopted) == (b"own", False)
    for one in (again, store):
        one.close()


def test_a_node_that_begins_anew_keeps_its_keys_and_what_it_has_signed(tmp_path: Path) -> None:
    for name in ("config/node_key.json", "data/priv_validator_state.json", "data/state.db/CURRENT", "data/cs.wal/wal"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    forget_blocks(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["config/node_key.json", "data/priv_validator_state.json"]


def test_a_store_that_cannot_be_opened_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(tmp_path / "missing" / "app.db", "chain-1")
    (tmp_path / "file").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(tmp_path / "file", "chain-1")
