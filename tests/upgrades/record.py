"""`python -m tests.upgrades.record`: a real network changes from version 1 to 2; its blocks become two transcripts.

`ledger_1_to_2.jsonl` holds all of them, `ledger_2_from_1.jsonl` the last state of version 1 and the blocks after it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from quorate.abci import Plan, Target
from quorate.localnet.recorder import record, stored_state
from tests.chain_of_agents.network import ChainOfAgents
from tests.upgrades.v1.ledger.service import service as v1
from tests.upgrades.v2.ledger.service import service as v2

FOLDER = Path(__file__).parents[1] / "transcripts" / "upgrades"


async def main() -> None:
    async with ChainOfAgents("ledger", crash_at=1) as chain:  # so an end is no fault
        chain.start()
        await chain.until_settled(7, timeout_s=120)
        chain.ask(Plan(Target.of(v2), chain.height(0) + 10), 0, 1, 3)
        await chain.until_ended(0, 1, 2, 3)
        last_of_1 = stored_state(chain.homes[0] / "app.db")
        for index in range(4):
            chain.configure(index, service="ledger_2")
        chain.start()
        await chain.until_settled(chain.settled(0) + 8, timeout_s=120)
        socket = Path(chain.files[0].sockets) / "rpc.sock"
        whole = await record(socket, chain.genesis, v2, older=(v1,))
        whole.save(FOLDER / "ledger_1_to_2.jsonl")
        part = await record(socket, chain.genesis, v2, start=last_of_1)
        part.save(FOLDER / "ledger_2_from_1.jsonl")
        print(f"{len(whole.blocks)} and {len(part.blocks)} blocks")


if __name__ == "__main__":
    asyncio.run(main())
