"""Hello world: each period the agents elect a keeper, and the keeper greets."""

from dataclasses import dataclass

from quorate import ROUND_TIMEOUT, Address, Context, Service, State, agree, only_keeper, same
from quorate.rounds import pause, register


@dataclass(frozen=True)
class Config:
    greeting: str = "hello"
    pause_s: float = 2


@dataclass(frozen=True)
class Hello(State):
    keeper: Address = Address("")
    greeting: str = ""


@agree(same("keeper"))
async def elect(ctx: Context, state: Hello) -> Address:
    """Name the participant that this period's beacon points at."""
    return state.participants[await ctx.beacon() % len(state.participants)]


@agree(only_keeper("greeting"), timeout_s=5)
async def greet(ctx: Context, state: Hello) -> str:
    """Say hello; only the keeper's words count. If it is silent, the next period has another keeper."""
    return f"{ctx.me} says {ctx.config.greeting}"


service = Service("hello_world", state=Hello, config=Config, start=register, otherwise=pause, transitions={
    (register, "DONE"): elect, (register, ROUND_TIMEOUT): register,
    (elect, "DONE"): greet,
    (greet, "DONE"): pause,
    (pause, "DONE"): elect,
})  # fmt: skip
