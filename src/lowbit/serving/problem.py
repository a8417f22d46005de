"""What a client is told if it gets no answer: a status and a sentence, in the form of OpenAI's."""

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ProblemError(Exception):
    """Ends a request with a status and a sentence. retry_after: seconds, if it may pass."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers: Mapping[str, str] = (
            {} if retry_after is None else {"Retry-After": str(retry_after)}
        )

    def body(self) -> dict[str, Any]:
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = TYPES.get(self.status, usual)
        return {"error": {"message": self.sentence, "type": kind, "param": None, "code": None}}
