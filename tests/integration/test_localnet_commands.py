"""What `why` and `replay --record` say of four real agents: well, weakened, without a quorum, back, and recorded."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from quorate.abci import Genesis
from quorate.chain.wallet import Wallet
from quorate.loader import load_service
from quorate.localnet.keys import PASSPHRASE, save_keystore
from quorate.localnet.recorder import record, stored_state
from quorate.localnet.run_dir import find_run, run_dir
from quorate.localnet.snapshot import agent_files
from quorate.localnet.transcript import replay
from tests.local_run import HELLO_WORLD, agents_of, said

pytestmark = [pytest.mark.integration, pytest.mark.needs("cometbft")]


async def test_why_is_right_for_stopped_peers_and_a_wrong_key_and_a_recording_replays(tmp_path: Path) -> None:
    with run_dir(tmp_path) as run:
        async with agents_of(HELLO_WORLD, run, config={"pause_s": 0.5}) as (quorum, supervisor):
            assert find_run(tmp_path) == run
            await said(run, lambda found: found.is_well and found.period > 0)

            service = load_service(HELLO_WORLD)
            home = agent_files(run)[1]
            transcript = await record(home.socket_dir / "rpc.sock", Genesis.load(home.comet_home), service, periods=2)
            found = replay(transcript, service)
            assert (found.broken, found.periods) == (None, 2)
            start = stored_state(home.home / "state.db")
            later = await record(home.socket_dir / "rpc.sock", transcript.genesis, service, periods=1, start=start)
            found = replay(later, service)
            assert (found.broken, found.periods, later.blocks[0].height > 1) == (None, 1, True)

            os.kill(quorum.child("agent-4").pid, signal.SIGSTOP)
            weakened = await said(run, lambda found: not found.is_well)
            assert [(one.kind, one.who) for one in weakened.findings] == [("agent-paused", ("agent-4",))]

            await quorum.kill("agent-3")
            halted = await said(run, lambda found: any(one.weight == "stops" for one in found.findings))
            assert halted.verdict.startswith("Nothing can be decided in ")
            assert "2 of 4 agents answer; 3 are needed" in halted.verdict
            assert "agent-3 does not run" in halted.verdict.lower()
            assert {"agent-3", "agent-4"} <= {one.agent for one in halted.missing} | set(halted.sent)

            command, keystore = quorum._crew.commands["agent-3"], quorum.files["agent-3"].keystore
            right_key = keystore.rename(keystore.with_suffix(".right"))
            save_keystore(Wallet.create(), keystore, command.env[PASSPHRASE])
            locked_out = await supervisor.spawn("agent-3", command.argv, env=command.env, cwd=command.cwd, may_end=True)
            assert await locked_out.wait() == 1
            wrong_key = await said(run, lambda found: "holds the key of" in found.verdict)
            assert quorum.files["agent-3"].me in wrong_key.verdict
            right_key.replace(keystore)

            os.kill(quorum.child("agent-4").pid, signal.SIGCONT)
            await quorum.start("agent-3")
            await said(run, lambda found: found.is_well and found.sequence > halted.sequence + 2)
