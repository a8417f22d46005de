"""Numbers that bound what a service holds and how long anything takes."""

from dataclasses import dataclass, fields

from lowbit.errors import UsageError, check_at_least


@dataclass(frozen=True)
class Settings:
    """queue: rows that are accepted and not answered. inputs: rows of a request. tokens: of a
    batch. body: bytes. timeout: seconds from a request's end to its answer. slow: seconds a client
    may take to send a request, or to take an answer. grace: seconds for answers after a signal to
    stop. connections: at a time. api_key: None asks for none.

    Raises UsageError for numbers below 1, and for a queue that is shorter than a request.
    """

    queue: int = 4096
    inputs: int = 1024
    tokens: int = 512
    body: int = 8 << 20
    timeout: float = 60
    slow: float = 10
    grace: float = 30
    connections: int = 1000
    api_key: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "api_key":
                check_at_least(field.name, value, 1)
        if self.queue < self.inputs:
            raise UsageError(
                f"a queue of {self.queue} rows cannot hold a request of {self.inputs}: raise"
                " --queue or lower --max-inputs"
            )
