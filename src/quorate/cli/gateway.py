"""`./quorate gateway`: one OpenAI-compatible endpoint in front of all staked operators."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import click

from quorate.chain import Wallet, read_passphrase
from quorate.chain.wallet import PASSPHRASE
from quorate.durable import replace_file
from quorate.errors import ConfigError
from quorate.gateway import GatewayConfig, KeyFile, Ledger, serve
from quorate.operator.config import EvmConfig
from quorate.units import Address

__all__ = ["gateway"]

_CONFIG = click.Path(dir_okay=False, path_type=Path)
_IN = click.option(
    "--config", "path", type=_CONFIG, default="gateway.json", show_default=True, help="The gateway's file."
)


@click.group()
def gateway() -> None:
    """Serve OpenAI's API in front of all staked operators.

    \b
      ./quorate gateway init --evm URL --registry ADDRESS    a wallet and gateway.json
      ./quorate gateway key add NAME                         shows a new API key, once
      ./quorate gateway start                                serve until Ctrl-C

    Then give any OpenAI client the address and the key. QUORATE_PASSPHRASE protects the wallet (docs/gateway.md).
    """


@gateway.command()
@_IN
@click.option("--evm", "url", required=True, help="URL of a node of the chain with the registry.")
@click.option("--chain-id", default=31337, show_default=True)
@click.option("--registry", required=True, help="Address of the OperatorRegistry.")
@click.option("--port", default=8402, show_default=True, help="0: a free one.")
def init(path: Path, url: str, chain_id: int, registry: str, port: int) -> None:
    """Make the gateway's wallet and its file."""
    if path.exists():
        raise ConfigError(f"{path} is there already", fix="remove it, or choose another by --config")
    evm = EvmConfig(url=url, chain_id=chain_id, registry=Address(registry))
    wallet = Wallet.create()
    keystore = path.with_name("gateway-wallet.json")
    wallet.save_keystore(keystore, read_passphrase(os.environ))
    said = {
        "keystore": keystore.name,
        "evm": {"url": evm.url, "chain_id": evm.chain_id, "registry": evm.registry},
        "port": port,
    }
    replace_file(path, (json.dumps(said, indent=2) + "\n").encode())
    click.echo(f"{path} is made; the gateway asks operators as {wallet.address}.")


@gateway.command()
@_IN
def start(path: Path) -> None:
    """Serve until Ctrl-C; answers in progress may end, a second Ctrl-C does not wait for them."""
    passphrase = read_passphrase(os.environ)
    os.environ.pop(PASSPHRASE, None)
    config = GatewayConfig.load(path)
    if not KeyFile(config.keys).all():
        click.echo("There is no API key yet: ./quorate gateway key add NAME", err=True)
    asyncio.run(_until_signal(config, passphrase))
    click.echo("stopped", err=True)


async def _until_signal(config: GatewayConfig, passphrase: str) -> None:
    serving = asyncio.ensure_future(serve(config, passphrase, lambda url: click.echo(f"serving {url}")))
    loop, told = asyncio.get_running_loop(), list[int]()

    def stop(number: int) -> None:
        if told:
            os._exit(128 + number)
        told.append(number)
        serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


@gateway.group()
def key() -> None:
    """API keys: who may ask."""


@key.command()
@click.argument("name")
@click.option("--most-tokens", type=int, help="Its budget: tokens in and out, of all answers together.")
@_IN
def add(name: str, most_tokens: int | None, path: Path) -> None:
    """Make a key for NAME and show it: it is kept as a hash only."""
    click.echo(KeyFile(GatewayConfig.load(path).keys).make(name, most_tokens))


@key.command(name="list")
@_IN
def list_keys(path: Path) -> None:
    """Whose keys there are, and what each has used."""
    config = GatewayConfig.load(path)
    used = Ledger.read(config.ledger)
    for one in KeyFile(config.keys).all():
        made = time.strftime("%Y-%m-%d", time.gmtime(one.made_at))
        budget = "" if one.most_tokens is None else f" of {one.most_tokens}"
        click.echo(f"{one.name}  made {made}  {used[one.name].tokens if one.name in used else 0}{budget} tokens")


@key.command()
@click.argument("name")
@_IN
def revoke(name: str, path: Path) -> None:
    """Refuse NAME's key from now on, also in a gateway that runs."""
    KeyFile(GatewayConfig.load(path).keys).revoke(name)


@gateway.command()
@_IN
def usage(path: Path) -> None:
    """Every part of every answer, as CSV: time, key, answer, model, operator, tokens, receipt."""
    config = GatewayConfig.load(path)
    table: csv.DictWriter[str] | None = None
    if config.ledger.exists():
        for line in config.ledger.read_text().splitlines():
            row = json.loads(line)
            if table is None:
                table = csv.DictWriter(sys.stdout, list(row))
                table.writeheader()
            table.writerow(row)
