"""What the delegate's owner may set, and what is noticed at start instead of at the first vote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.loader import load_service, load_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "services" / "delegate"
SERVICE = load_service(FOLDER)
ADDRESSES = {
    "safe": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "governor": "0x" + "2" * 40,
    "token": "0x" + "3" * 40,
    "treasury": "0x" + "4" * 40,
}


def config_hash(**overrides: Any) -> str:
    return load_settings(SERVICE, FOLDER, {**ADDRESSES, **overrides}).config_hash()


def test_the_shipped_settings_lack_only_the_deployments_addresses() -> None:
    assert load_settings(SERVICE, FOLDER, ADDRESSES).config.policy.name == "treasury"
    with pytest.raises(ConfigError, match="safe"):
        load_settings(SERVICE, FOLDER)


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_without_its_checksum_is_refused(name: str) -> None:
    """Compared with checksummed ones it would equal none: the DAO's own token would be a strange one."""
    with pytest.raises(ConfigError, match=f"{name} is '0x70997970c518.*checksum"):
        config_hash(**{name: ADDRESSES["safe"].lower()})


def test_a_policy_that_is_not_there_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        config_hash(policy_file="dao/policies/nothing.yaml")


def test_agents_with_different_policies_have_different_settings(tmp_path: Path) -> None:
    """The chain's genesis names the settings' hash; the file's name alone would not tell its content."""
    policy = tmp_path / "treasury.yaml"
    shutil.copy(ROOT / "dao" / "policies" / "treasury.yaml", policy)
    same = config_hash(policy_file=str(policy))
    assert config_hash(policy_file=str(policy)) == same
    policy.write_text(policy.read_text() + "\n# a remark\n")
    assert config_hash(policy_file=str(policy)) != same


def test_the_policy_itself_is_not_a_setting() -> None:
    with pytest.raises(ConfigError, match="policy"):
        config_hash(policy="x")
