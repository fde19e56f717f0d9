"""Operators on this machine: each with its own stake, sidecar and model servers; they share nothing but the chain.

async with operators(supervisor, run, tools=tools, evm=dao.evm, wallets=wallets) as providers:
    ...                                        # models take half a minute to load: do something else meanwhile
    await providers.wait_until_registered()
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from quorate.chain import Wallet
from quorate.localnet.crew import Command, Crew
from quorate.localnet.keys import PASSPHRASE, new_passphrase, save_keystore
from quorate.localnet.ports import LOOPBACK, held_ports
from quorate.localnet.processes import Child, Supervisor
from quorate.localnet.run_dir import RunDir, require_memory
from quorate.operator.config import EvmConfig, ModelConfig, OperatorConfig
from quorate.operator.model_server import compute_memory_need
from quorate.units import Address

__all__ = ["PROGRAM", "READY_S", "ModelTools", "Operators", "local_models", "operators"]

PROGRAM = ("-m", "quorate.operator")
"""What Python runs as an operator; its one argument is the operator's configuration."""
READY_S = 600.0  # two operators on two cores load their models in about a minute
_SOURCE = Path(__file__).parents[2]


class ModelTools(Protocol):
    """What set-up has made for operators (`quorate.localnet.tools.Tools`)."""

    @property
    def model_python(self) -> Path:
        """The Python of the environment that holds vLLM."""
        ...

    @property
    def models(self) -> Path:
        """The folder that holds one folder for each model."""
        ...


class Contracts(Protocol):
    """Where the chain is, and the registry on it (`quorate.host.agent_file.EvmSettings`)."""

    @property
    def url(self) -> str: ...
    @property
    def chain_id(self) -> int: ...
    @property
    def registry(self) -> Address: ...


@dataclass(frozen=True)
class Operators:
    """The operators, by name: `operator-1` and so on, in the order of their wallets."""

    configs: Mapping[str, OperatorConfig]
    wallets: tuple[Wallet, ...]
    _crew: Crew

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients reach them."""
        return tuple(f"http://{config.host}:{config.port}" for config in self.configs.values())

    @property
    def names(self) -> dict[Address, str]:
        """The name of each operator by the address of its account, for the view."""
        return {wallet.address: name for wallet, name in zip(self.wallets, self.configs, strict=True)}

    def child(self, name: str) -> Child:
        """The process of an operator."""
        return self._crew.child(name)

    async def wait_until_registered(self, *names: str, within_s: float = READY_S) -> None:
        """Wait until these (all, if none is named) serve, are registered and have staked."""
        await self._crew.ready(*names, within_s=within_s)

    async def start(self, *names: str) -> None:
        """Start these again after `kill`; `wait_until_registered` says when they serve."""
        await self._crew.start(*names)

    async def kill(self, *names: str) -> None:
        """End these and their model servers at once."""
        await self._crew.kill(*names)


def local_models(models: Path, count: int) -> tuple[tuple[ModelConfig, ...], ...]:
    """What each of `count` operators serves: all the embeddings, the first also the language model.

    Embeddings are what decides, so they come from several; the language model's words weigh nothing.
    """
    embedding = ModelConfig(name="all-minilm-l6-v2", task="embedding", folder=models / "minilm")
    language = ModelConfig(name="smollm2-135m-instruct", task="chat", folder=models / "smollm2-135m-instruct")
    return tuple((embedding, language) if number == 0 else (embedding,) for number in range(count))


@asynccontextmanager
async def operators(
    supervisor: Supervisor,
    run: RunDir,
    *,
    evm: Contracts,
    wallets: Sequence[Wallet],
    tools: ModelTools | None = None,
    models: Sequence[Sequence[ModelConfig]] | None = None,
    program: Sequence[str] = PROGRAM,
) -> AsyncIterator[Operators]:
    """Start an operator for each wallet, which must hold its stake and some gas money; stop them at the end.

    Returns at once: see `wait_until_registered`. `models` says what each serves (`local_models` by default); models
    with an `upstream` need no `tools`. Raises `SetupError` where the memory cannot hold all model servers.
    """
    if models is None:
        if tools is None:
            raise ValueError("operators need tools, or models that others serve")
        models = local_models(tools.models, len(wallets))
    _require_memory(models)
    passphrase = new_passphrase()
    with held_ports(len(wallets)) as ports:  # to the end: one that is started again has the same registered endpoint
        configs = {}
        for number, (wallet, port, served) in enumerate(zip(wallets, ports, models, strict=True), 1):
            config = _config(run, f"operator-{number}", port, evm, tools, served)
            config.keystore.parent.mkdir()
            save_keystore(wallet, config.keystore, passphrase)
            configs[config.name] = config
        crew = Crew(supervisor, {name: _command(config, program, passphrase) for name, config in configs.items()})
        await crew.start()
        yield Operators(configs, tuple(wallets), crew)
        await crew.stop()  # after an error the supervisor does it, and says so if one had ended by itself


def _require_memory(models: Sequence[Sequence[ModelConfig]]) -> None:
    """Each operator checks for itself; together they may want more than there is."""
    own = [[model.served() for model in served if model.upstream is None] for served in models]
    need = sum(compute_memory_need(served) for served in own if served)
    if need:
        count = sum(map(bool, own))
        require_memory(need, f"the model servers of {count} operators" if count > 1 else "the model servers")


def _config(
    run: RunDir, name: str, port: int, evm: Contracts, tools: ModelTools | None, models: Sequence[ModelConfig]
) -> OperatorConfig:
    return OperatorConfig(
        name=name,
        keystore=run.scratch / name / "keystore.json",
        evm=EvmConfig(url=evm.url, chain_id=evm.chain_id, registry=evm.registry),
        models=tuple(models),
        events=run.events / f"{name}.jsonl",
        logs=run.logs / name,
        host=LOOPBACK,
        port=port,
        model_python=tools.model_python if tools else None,
    )


def _command(config: OperatorConfig, program: Sequence[str], passphrase: str) -> Command:
    """The operator's process; its temporary files lie in the run's scratch and go with it."""
    home = config.keystore.parent
    file = home / "operator.json"
    file.write_text(json.dumps(_plain(asdict(config)), indent=2) + "\n")
    return Command(
        argv=(sys.executable, "-P", *program, file),
        env={PASSPHRASE: passphrase, "PYTHONPATH": str(_SOURCE), "TMPDIR": str(home)},
        cwd=home,
        events=config.events,
    )


def _plain(value: Any) -> Any:
    """The value as JSON has it: paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
