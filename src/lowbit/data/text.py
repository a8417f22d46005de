from pathlib import Path


def read_text(data: str) -> str:
    return Path(data).read_text(encoding="utf-8")
