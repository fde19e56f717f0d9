"""One agent of a service, assembled: open-aea holds the key and the loop, the validator beside it brings the quorum."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aea.identity.base import Identity

from quorate.abci import Archive, Genesis, Plan, ServiceApp, Store, Target, UpgradeDue, Validator, has_signed
from quorate.chain import Chain, OperatorRegistry, selector_of
from quorate.errors import ChainError, QuorateError
from quorate.fsm import Period
from quorate.loader import load_settings
from quorate.model import ModelClient
from quorate.units import Wei

from .agent_file import AgentFile, EvmSettings
from .agreed import Agreed
from .approvals import Approvals, Guests, membership_verbs
from .connection import ServiceConnection
from .context import ActContext, Equipment, keep_evidence
from .control import Control, Verb
from .decision_maker import Limits
from .journal import Journal
from .metrics import Metrics, keep_writing
from .packages import build_agent
from .runner import Runner
from .settler import SafeSettler
from .signed import FileMemory
from .signer import Signer
from .versions import installed

__all__ = ["HostedAgent"]

_log = logging.getLogger(__name__)


class HostedAgent:
    """An agent from its file to its end. `run` returns when it was told to stop, and raises when something failed."""

    def __init__(self, file: AgentFile, root: Path, passphrase: str) -> None:
        self._file = file
        self._service, folder = installed(file, root)
        self._settings = load_settings(self._service, folder, file.config, agent=file.name)
        self._genesis = self._own_genesis()
        self._agreed = Agreed()
        self._metrics = Metrics(agent=file.name, service=self._service.name)
        self._journal = Journal(file.events, file.name, self._metrics.count)
        self._agent, decision_maker = build_agent(
            package=root / "agents" / self._service.name,
            root=root,
            name=file.name,
            me=file.me,
            keystore=file.keystore,
            passphrase=passphrase,
            data_dir=file.home,
            connect=self._connection,
        )
        self._memory = FileMemory(file.home / "signed.log", has_signed_before=has_signed(file.comet_home))
        decision_maker.bind(self._agreed, file.chain_id, _limits(file.evm), self._memory)
        self._signer = Signer(file.me, self._agent.context.decision_maker_message_queue.put_nowait)
        self._resources = AsyncExitStack()
        self._watch: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Run until stopped (SIGTERM, SIGINT) or until something fails; the failure is raised."""
        try:
            self._agent.start()
        except Exception as error:  # open-aea's words for a connection that did not come up; ours say why
            if self._failure is None:
                raise
            raise self._failure from error
        finally:
            self._agent.stop()
            self._journal.close()
            self._memory.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask the agent to end; may be called from a signal handler."""
        self._agent.runtime.stop()

    def committed(self) -> Period | None:
        """The last committed period; None before the first block."""
        return self._agreed.period

    def _own_genesis(self) -> Genesis:
        genesis = Genesis.load(self._file.comet_home)
        genesis.check(self._service)
        return genesis

    def _connection(self, identity: Identity) -> ServiceConnection:
        return ServiceConnection(identity, str(self._file.home), self._start, self._stop)

    async def _start(self) -> None:
        try:
            await self._open()
        except BaseException as error:
            self._failure = error if isinstance(error, QuorateError) else None
            await self._stop()
            raise

    async def _open(self) -> None:
        approvals = Approvals(self._file.home / "approved.json")
        equipment = await self._equip(approvals)
        runner = Runner(
            chain_id=self._file.chain_id,
            signer=self._signer,
            agreed=self._agreed,
            journal=self._journal,
            context_of=lambda period: ActContext(equipment, period),
            told=approvals.settled,
            keep=functools.partial(keep_evidence, self._file.evidence_dir),
        )
        store = Store(self._file.home / "state.db", self._file.chain_id)
        archive = Archive(self._file.home / "snapshots") if self._file.peers else None
        settings = self._settings.config_hash()
        app = ServiceApp(
            self._service,
            self._genesis,
            self._file.me,
            store,
            runner,
            archive=archive,
            joins=self._file.joins,
            config_hash=settings,
        )
        if (approved := approvals.change) is not None and approved.join is not None:
            app.welcome(approved.join.node_id)
        guests = Guests(self._file.home / "guests.json")
        for node in guests.nodes:
            app.welcome(node)
        runner.connect(app)
        self._resources.push_async_callback(runner.close)
        file = self._file
        validator = Validator(app, file.comet_home, file.cometbft, file.socket_dir, file.peers)
        await self._resources.enter_async_context(validator)
        verbs = _verbs(app, runner) | membership_verbs(app, runner, approvals, guests)
        await self._resources.enter_async_context(Control(file.control, verbs))
        loop = asyncio.get_running_loop()
        self._watch = loop.create_task(self._stop_on_failure(validator, runner, app.left))
        self._writing = loop.create_task(keep_writing(self._metrics, self._file.events.with_suffix(".prom")))
        self._journal.emit("ready", address=self._file.me, height=app.height)

    async def _stop_on_failure(self, validator: Validator, runner: Runner, left: asyncio.Future[None]) -> None:
        """A node, an application or an act that failed ends this agent: whoever started it starts both again.

        So does its leave, which is no failure.
        """
        failures: set[asyncio.Future[Any]] = {validator.failed, runner.failure}
        await asyncio.wait({*failures, left}, return_when=asyncio.FIRST_COMPLETED)
        failed = next((one for one in failures if one.done()), None)
        if failed is not None:
            self._failure = failed.result()
            if isinstance(self._failure, UpgradeDue):
                self._journal.emit("note", text=str(self._failure))
            else:
                self._journal.error(str(self._failure))
        else:
            text = f"{self._file.me} is no member of {self._file.chain_id} any more; {self._file.name} ends"
            _log.info(text)
            self._journal.emit("left", message=text)
        self.stop()

    async def _stop(self) -> None:
        for task in (self._watch, self._writing):
            if task is not None:
                task.cancel()
        await self._resources.aclose()

    async def _equip(self, approvals: Approvals) -> Equipment:
        file = self._file
        chain = model = settler = None
        if file.evm is not None:
            chain = await self._resources.enter_async_context(Chain.at(file.evm.url, file.evm.chain_id))
            await _look_at(chain, self._journal)
            if file.evm.safe is not None:
                settler = SafeSettler(
                    chain,
                    file.evm.safe,
                    self._signer,
                    self._journal,
                    confirmations=file.evm.confirmations,
                    ceiling=_ceiling(file.evm),
                    reprice_s=file.evm.reprice_s,
                )
            if file.evm.registry is not None:
                registry = OperatorRegistry(chain, file.evm.registry)
                client = ModelClient(registry, self._signer, asking=self._journal.asking)
                model = await self._resources.enter_async_context(client)
        return Equipment(
            me=file.me,
            chain_id=file.chain_id,
            config=self._settings.config,
            log=_log,
            journal=self._journal,
            evidence=file.evidence_dir,
            chain=chain,
            model=model,
            settler=settler,
            approvals=approvals,
            agreed=self._agreed,
        )


async def _look_at(chain: Chain, journal: Journal, patience_s: float = 3) -> None:
    """See at the start whether the EVM node serves the right chain; raises ConfigError if it serves another.

    A dead one keeps nobody from the rounds that do not need it: an act that does asks again until there is an answer
    (`Runner`), and the first request asks for the chain id. One that hangs makes the agent `patience_s` late.
    """
    try:
        async with asyncio.timeout(patience_s):
            await chain.check()
    except (ChainError, TimeoutError) as error:
        why = error if isinstance(error, ChainError) else f"{chain.where} gave no answer within {patience_s:g} s"
        journal.waiting("the EVM node", f"{why}; rounds that need it wait until it is back")


def _verbs(app: ServiceApp, runner: Runner) -> dict[str, Verb]:
    """What this machine's user can tell this agent."""

    async def ask(request: Mapping[str, Any]) -> Mapping[str, Any]:
        before = await asked(request)
        runner.ask(request["event"])
        return before

    async def withdraw(request: Mapping[str, Any]) -> Mapping[str, Any]:
        runner.withdraw(request["event"])
        return await asked(request)

    async def asked(request: Mapping[str, Any]) -> Mapping[str, Any]:
        return asdict(runner.asked(request["event"], app.period))

    async def upgrade(request: Mapping[str, Any]) -> Mapping[str, Any]:
        target = Target(request["version"], request["spec_hash"], request["config_hash"])
        await runner.ask_upgrade(Plan(target, request["height"]))
        return await version({})

    async def version(_: Mapping[str, Any]) -> Mapping[str, Any]:
        upgrades = app.upgrades
        return {
            "version": app.service.version,
            "spec_hash": app.service.spec_hash,
            "height": app.height,
            "began": upgrades.began,
            "asking": {who: [plan.target.version, plan.target.spec_hash] for who, _, plan in upgrades.asks},
            "due": upgrades.due.height if upgrades.due else 0,
            "quorum": app.period.quorum,
        }

    answers = {"ask": ask, "asked": asked, "withdraw": withdraw}
    plan = {"version": int, "spec_hash": str, "config_hash": str, "height": int}
    verbs = {name: Verb(answer, {"event": str}) for name, answer in answers.items()}
    return {**verbs, "upgrade": Verb(upgrade, plan), "version": Verb(version)}


def _limits(evm: EvmSettings | None) -> Limits | None:
    """What a delegate's Safe may do: vote, and nothing else. None: this agent signs nothing on-chain."""
    if evm is None or evm.safe is None or evm.governor is None:
        return None
    vote = selector_of("castVoteWithReason(uint256,uint8,string)")
    return Limits(
        safe=evm.safe,
        chain_id=evm.chain_id,
        calls=frozenset({(evm.governor, vote)}),
        max_fee_per_gas=_ceiling(evm),
    )


def _ceiling(evm: EvmSettings) -> Wei:
    return Wei(evm.max_fee_gwei * 10**9)
