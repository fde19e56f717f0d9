"""An agent's secrets survive it, and nobody else reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorate.errors import ConfigError
from quorate.host.vault import FileVault
from quorate.rounds import Vault


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    vault: Vault = FileVault(tmp_path / "vault")
    await vault.put("0xab", '["salt",7]')
    await vault.put("0xab", '["salt",8]')
    assert await FileVault(tmp_path / "vault").get("0xab") == '["salt",8]'
    assert await vault.get("0xcd") is None
    assert [path.name for path in (tmp_path / "vault/0").iterdir()] == ["0xab"]


async def test_only_the_agents_user_can_read_it(tmp_path: Path) -> None:
    await FileVault(tmp_path / "vault").put("0xab", "x")
    assert (tmp_path / "vault").stat().st_mode & 0o077 == 0
    assert (tmp_path / "vault/0").stat().st_mode & 0o077 == 0
    assert (tmp_path / "vault/0/0xab").stat().st_mode & 0o077 == 0


async def test_openings_go_when_their_period_is_over_for_good(tmp_path: Path) -> None:
    for period in (1, 2, 3):  # period 3 is proposed: the block that ends period 2 may never be decided
        await FileVault(tmp_path, period, lambda: 2).put("0xab", f"of {period}")
    assert [await FileVault(tmp_path, period).get("0xab") for period in (1, 2, 3)] == [None, "of 2", "of 3"]


async def test_an_agent_that_catches_up_forgets_nothing_of_what_is_to_come(tmp_path: Path) -> None:
    await FileVault(tmp_path, 7, lambda: 7).put("0xab", "of 7")
    await FileVault(tmp_path, 2, lambda: 2).put("0xcd", "of 2")
    assert await FileVault(tmp_path, 7, lambda: 2).get("0xab") == "of 7"


@pytest.mark.parametrize("name", ["../key", "a/b", ".hidden", ""])
async def test_a_name_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a secret"):
        await FileVault(tmp_path / "vault").put(name, "x")


async def test_salts_are_long_and_never_the_same(tmp_path: Path) -> None:
    salts = {await FileVault(tmp_path).salt() for _ in range(100)}
    assert {len(salt) for salt in salts} == {64}
    assert len(salts) == 100
