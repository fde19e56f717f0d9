"""`why` of a whole delegate service: a dead RPC, an agent without gas, a silent operator and silent models."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp.test_utils import TestServer

from dao.demo import delegate_net
from quorate.chain import Wallet
from quorate.localnet.diagnosis import Diagnosis
from quorate.localnet.stage import stage
from quorate.localnet.tools import Tools
from quorate.operator.config import ModelConfig
from quorate.units import Hash, Wei
from tests.local_run import ROOT, said
from tests.model_world import ScriptedModel

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft", "evm")]
MODELS = (("all-minilm-l6-v2", "embedding"), ("smollm2-135m-instruct", "chat"))


def kinds(found: Diagnosis) -> set[str]:
    return {one.kind for one in found.findings}


async def test_why_names_a_dead_rpc_a_poor_agent_a_silent_operator_and_silent_models() -> None:
    tools = SimpleNamespace(
        cometbft=Path(os.environ["QUORATE_COMETBFT"]), anvil=Path(os.environ["QUORATE_ANVIL"]), model_python=None
    )
    model = ScriptedModel()
    async with TestServer(model.application()) as server, stage(ROOT, "test", to_stderr=True) as on:
        url = str(server.make_url("")).rstrip("/")
        served = tuple(
            ModelConfig(
                name=name,
                task="chat" if task == "chat" else "embedding",
                upstream=url,
                manifest_hash=Hash("0x" + "aa" * 32),
            )
            for name, task in MODELS
        )
        # with an upstream, an operator needs no tools
        async with delegate_net(on, cast(Tools, tools), ROOT, models=(served, served), config={"pause_s": 1}) as net:
            await net.operators.wait_until_registered()
            well = await said(on.run, lambda found: found.is_well and found.round == "watch" and bool(found.findings))
            assert "waiting for a proposal" in well.verdict

            node, poor = net.dao.node, net.agents.files["agent-2"]
            await node.set_balance(poor.me, Wei(0))
            found = await said(on.run, lambda found: not found.is_well)
            assert [(one.kind, one.who, one.weight) for one in found.findings if one.weight != "says"] == [
                ("no-gas", ("agent-2",), "weakens")
            ]
            await node.set_balance(poor.me, Wei(10**20))

            os.kill(node.child.pid, signal.SIGSTOP)
            found = await said(on.run, lambda found: "chain-silent" in kinds(found))
            assert f"the EVM chain at {node.url} cannot be used: no answer in 3 s" in found.verdict
            os.kill(node.child.pid, signal.SIGCONT)

            operator = net.operators.child("operator-2").pid
            os.kill(operator, signal.SIGSTOP)
            found = await said(on.run, lambda found: "operator-silent" in kinds(found))
            assert "operator-2" in found.verdict
            assert "is paused" in found.verdict
            os.kill(operator, signal.SIGCONT)
            await said(on.run, lambda found: found.is_well)

            model.delay_s = 30
            proposal = await net.dao.propose([net.dao.payment(Wallet.create().address, 1)], "# A grant\n\nFor a team.")
            await net.dao.open_votes(proposal)
            found = await said(on.run, lambda found: "model-silent" in kinds(found))
            assert found.round == "judge"
            assert "'s model all-minilm-l6-v2 for 2" in found.verdict
            assert any("waits for an answer of operator-" in one.why for one in found.missing)
            model.delay_s = 0

            await server.close()
            found = await said(
                on.run, lambda found: len([f for f in found.findings if f.kind == "operator-silent"]) == 2
            )
            assert "held up: operator-1" in found.verdict
            assert "its model server does not answer for all-minilm-l6-v2, smollm2-135m-instruct" in found.verdict
