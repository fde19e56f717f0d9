"""Errors in OpenAI's form. `code` is the reason for a program, `message` for a person, `attempts` has the operators'.

| status | code | what happened |
|---|---|---|
| 400 | invalid_json, invalid_request | the request is wrong; `param` is the field |
| 400 | refused_by_operators | several operators found fault with it |
| 401 | no_api_key, invalid_api_key | |
| 404 | model_not_found | no operator in the registry serves the model |
| 413 | request_too_large | |
| 429 | budget_spent | nothing is left of the key's budget |
| 502 | no_valid_answer | operators failed, or nothing that they answered counts |
| 503 | gateway_busy, operators_busy | come again later: `Retry-After` |
| 503 | operators_paused, registry_unreachable, ledger_full, keys_unreadable | nobody can be asked, or nothing noted |
| 504 | operators_timed_out | |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from quorate.errors import TimedOut
from quorate.model import Attempt, Declined, NoAnswer

__all__ = ["REFUSALS", "ApiError"]

REFUSALS = 2
"""As many operators must find fault with a request before it is believed; fewer where there are fewer."""
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "insufficient_quota"}
_LONGEST_MESSAGE = 1000
_MOST_ATTEMPTS = 16


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, attempts: Sequence[Attempt] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.attempts = attempts

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        said: dict[str, Any] = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        if self.attempts:
            said["attempts"] = [
                {"operator": one.operator, "reason": one.reason, "status": getattr(one.error, "status", None)}
                for one in self.attempts[:_MOST_ATTEMPTS]
            ]
        return {"error": said}

    def response(self) -> web.Response:
        """The answer, whole."""
        headers = {"Retry-After": "1"} if self.code in ("gateway_busy", "operators_busy") else {}
        return web.json_response(self.as_json(), status=self.status, headers=headers)

    @classmethod
    def of(cls, error: NoAnswer) -> ApiError:
        """Why there is no route, or no answer at its end."""
        if not error.attempts:
            return cls(404, "model_not_found", error.message, param="model")
        message = error.message[:_LONGEST_MESSAGE]
        asked = [one for one in error.attempts if one.was_asked]
        kinds = [one.error for one in asked]
        if not asked:
            return cls(503, "operators_paused", message, attempts=error.attempts)
        blamed = sum(isinstance(one, Declined) and one.blames_request for one in kinds)
        if blamed >= min(REFUSALS, len(kinds)):
            return cls(400, "refused_by_operators", message, attempts=error.attempts)
        if all(isinstance(one, Declined) and one.is_busy for one in kinds):
            return cls(503, "operators_busy", message, attempts=error.attempts)
        if all(isinstance(one, TimedOut) for one in kinds):
            return cls(504, "operators_timed_out", message, attempts=error.attempts)
        return cls(502, "no_valid_answer", message, attempts=error.attempts)
