"""The table of doors: formats of other projects, by the name that `--to` takes."""

from lowbit.interop.door import Door

DOORS: dict[str, Door] = {}
