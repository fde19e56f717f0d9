"""What the tests of the EVM parts share: a real anvil, its rich accounts, the tools' places."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from eth_account import Account

from quorate.chain import Chain, Wallet
from quorate.localnet.anvil import Anvil, anvil
from quorate.localnet.processes import Supervisor

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / "third_party/evm/node_modules"
Account.enable_unaudited_hdwallet_features()


def tool(name: str) -> Path:
    """Where anvil or forge is: named by the environment (./quorate does), else as npm puts it."""
    named = os.environ.get(f"QUORATE_{name.upper()}")
    return Path(named) if named else NODE_MODULES / f"@foundry-rs/{name}-linux-amd64/bin/{name}"


def rich_wallet(number: int) -> Wallet:
    """One of the ten accounts that anvil starts with, 10,000 ETH each: keys that the whole world knows."""
    words = "test test test test test test test test test test test junk"
    return Wallet.from_key(Account.from_mnemonic(words, account_path=f"m/44'/60'/0'/0/{number}").key)


@dataclass(frozen=True)
class LocalChain:
    chain: Chain
    node: Anvil


@asynccontextmanager
async def local_chain(folder: Path) -> AsyncIterator[LocalChain]:
    """A fresh chain of its own, gone at the end of the block."""
    async with (
        Supervisor(folder) as supervisor,
        anvil(supervisor, tool("anvil")) as node,
        await Chain.connect(node.url, node.chain_id) as chain,
    ):
        yield LocalChain(chain, node)
