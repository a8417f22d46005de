"""The model card of a quantized checkpoint: how it was made, and what loading it needs."""

from pathlib import Path

import yaml

from lowbit.checkpoint.documents import MOST_YAML, parsed_yaml, read_bytes
from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.plan import Plan
from lowbit.errors import InputError
from lowbit.visible import code, fenced, markdown

TEMPLATE = """---
{front}---

# {name}, {recipe}

{made}: {quantized:,} of {total:,} parameters
({share:.1%}) in {modules} modules are stored in fewer bits. Everything else is as it was.{origin}

```python
import lowbit  # lets transformers read this model; without it the weights load wrong
from transformers import {architecture}

model = {architecture}.from_pretrained("path/to/this/folder")
```

## Recipe

{yaml}

## Kept in float

{kept}
"""


def write_card(
    folder: Path,
    source: Path,
    architecture: str,
    config: LowbitConfig,
    plan: Plan,
    origin: tuple[str, ...] = (),
) -> None:
    """Write README.md, with the licence and language of the source's card. origin: sentences about
    the source of imported codes."""
    front: dict[str, object] = {"library_name": "transformers", "tags": ["lowbit", "quantized"]}
    front |= {k: v for k, v in _front_matter(source).items() if k in ("license", "language")}
    kept = "\n".join(
        f"- {code(d.name)} ({markdown(d.module)}): {markdown(d.reason)}" for d in plan.kept
    )
    verb = "Imported by" if origin else "Quantized with"
    (folder / "README.md").write_text(
        TEMPLATE.format(
            front=yaml.safe_dump(front, sort_keys=False),
            name=markdown(source.resolve().name),
            recipe=markdown(config.recipe.name),
            made=f"{verb} {markdown(config.producer)}, recipe {code(config.recipe.name)}",
            origin="".join(f"\n{markdown(sentence)}" for sentence in origin),
            quantized=plan.quantized_parameters,
            total=plan.parameters,
            share=plan.share,
            modules=len(plan.quantized),
            architecture=architecture,
            yaml=fenced(config.recipe.to_yaml().rstrip(), "yaml"),
            kept=kept or "No matrix.",
        ),
        encoding="utf-8",
    )


def _front_matter(source: Path) -> dict[str, object]:
    """The YAML header of the float model's card, if it has one."""
    file = source / "README.md"
    try:
        text = read_bytes(file, MOST_YAML).decode("utf-8")
        header = parsed_yaml(text.split("---")[1], str(file)) if text.startswith("---") else None
    except (InputError, UnicodeDecodeError, IndexError):
        return {}
    return header if isinstance(header, dict) else {}
