"""Operators on this machine: their configurations and processes; here a small program in the operator's place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from quorate.chain import Wallet
from quorate.errors import SetupError
from quorate.host.agent_file import EvmSettings
from quorate.localnet import run_dir as run_dir_module
from quorate.localnet.operators import Operators, local_models, operators
from quorate.localnet.processes import Supervisor
from quorate.localnet.run_dir import RunDir, run_dir
from quorate.operator.config import ModelConfig, OperatorConfig
from quorate.units import Address, Hash

SOMEWHERE = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
EVM = EvmSettings(
    url="http://127.0.0.1:8545",
    chain_id=31337,
    safe=SOMEWHERE,
    governor=SOMEWHERE,
    token=SOMEWHERE,
    timelock=SOMEWHERE,
    registry=SOMEWHERE,
)
ELSEWHERE = ModelConfig(name="m", task="chat", upstream="http://127.0.0.1:1", manifest_hash=Hash("0x" + "11" * 32))
SAYS_READY = """
import json, sys, time
events = json.load(open(sys.argv[1]))["events"]
open(events, "a").write(json.dumps({"t": time.time(), "who": "x", "kind": "ready"}) + "\\n")
time.sleep(1000)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with run_dir(tmp_path) as made:
        yield made


@asynccontextmanager
async def two_operators(
    supervisor: Supervisor, run: RunDir, models: Sequence[Sequence[ModelConfig]] = ((ELSEWHERE,), (ELSEWHERE,))
) -> AsyncIterator[Operators]:
    wallets = [Wallet.create(), Wallet.create()]
    async with operators(
        supervisor, run, evm=EVM, wallets=wallets, models=models, program=("-c", SAYS_READY)
    ) as providers:
        yield providers


async def test_every_operator_gets_a_configuration_and_keys_of_its_own(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_operators(supervisor, run) as providers:
        await providers.wait_until_registered()
        for name, config in providers.configs.items():
            read = OperatorConfig.load(run.scratch / name / "operator.json")
            assert read == config
            assert json.loads(read.keystore.read_text())["address"].lower() in {
                wallet.address.lower().removeprefix("0x") for wallet in providers.wallets
            }
        assert len({config.keystore for config in providers.configs.values()}) == 2
        assert len(set(providers.endpoints)) == 2
        assert list(providers.names.values()) == ["operator-1", "operator-2"]


async def test_a_killed_operator_comes_back_at_the_same_endpoint(run: RunDir) -> None:
    async with Supervisor(run.logs) as supervisor, two_operators(supervisor, run) as providers:
        await providers.wait_until_registered()
        before, first = providers.endpoints, providers.child("operator-2").pid
        await providers.kill("operator-2")
        await providers.start("operator-2")
        await providers.wait_until_registered("operator-2", within_s=10)
        assert providers.endpoints == before
        assert providers.child("operator-2").pid != first


async def test_too_little_memory_for_all_of_them_is_said_before_any_starts(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir_module, "available_memory", lambda: 1 * run_dir_module.MIB)
    for folder in ("minilm", "smollm2-135m-instruct"):
        (tmp_path / folder).mkdir()
    models = local_models(tmp_path, 2)
    async with Supervisor(run.logs) as supervisor:
        with pytest.raises(SetupError, match=r"the model servers of 2 operators need .* GiB of memory; 1 MiB are free"):
            async with two_operators(supervisor, run, models):
                pass
        assert supervisor.children == []


def test_embeddings_come_from_all_and_the_language_model_from_one(tmp_path: Path) -> None:
    first, second = local_models(tmp_path, 2)
    assert [model.task for model in first] == ["embedding", "chat"]
    assert [model.task for model in second] == ["embedding"]
