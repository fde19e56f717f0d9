"""A chain that answers from a script: for unit tests, which open no socket."""

from __future__ import annotations

from typing import Any

from quorate.chain import Chain


class Script:
    """Answers by method: a value, a function of the parameters, an exception, or a node's ``{"error": ...}``."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    async def make_request(self, method: Any, params: Any) -> Any:
        self.asked.append((method, params))
        answer = self.answers[method]
        if callable(answer):
            answer = answer(*params)
        if isinstance(answer, BaseException):
            raise answer
        return (
            answer if isinstance(answer, dict) and "error" in answer else {"jsonrpc": "2.0", "id": 1, "result": answer}
        )

    async def disconnect(self) -> None:
        """Nothing is connected."""


def scripted_chain(answers: dict[str, Any], *, chain_id: int = 31337, is_known: bool = True) -> Chain:
    return Chain(Script(answers), chain_id, "http://scripted", is_known=is_known)
