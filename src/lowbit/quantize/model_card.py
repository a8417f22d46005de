"""The model card of a quantized checkpoint: how it was made, and what loading it needs."""

from pathlib import Path

import yaml

from lowbit.conversion.config import LowbitConfig
from lowbit.conversion.plan import Plan

TEMPLATE = """---
{front}---

# {name}, {recipe}

Quantized with {producer}, recipe `{recipe}`: {quantized:,} of {total:,} parameters
({share:.1%}) in {modules} modules are stored in fewer bits. Everything else is as it was.

```python
import lowbit  # lets transformers read this model; without it the weights load wrong
from transformers import {architecture}

model = {architecture}.from_pretrained("path/to/this/folder")
```

## Recipe

```yaml
{yaml}```

## Kept in float

{kept}
"""


def write_card(
    folder: Path, source: Path, architecture: str, config: LowbitConfig, plan: Plan
) -> None:
    """Write README.md. The licence and language of the float model's card are carried over."""
    front: dict[str, object] = {"library_name": "transformers", "tags": ["lowbit", "quantized"]}
    front |= {k: v for k, v in _front_matter(source).items() if k in ("license", "language")}
    kept = "\n".join(f"- `{d.name}` ({d.module}): {d.reason}" for d in plan.kept)
    (folder / "README.md").write_text(
        TEMPLATE.format(
            front=yaml.safe_dump(front, sort_keys=False),
            name=source.resolve().name,
            recipe=config.recipe.name,
            producer=config.producer,
            quantized=plan.quantized_parameters,
            total=plan.parameters,
            share=plan.share,
            modules=len(plan.quantized),
            architecture=architecture,
            yaml=config.recipe.to_yaml(),
            kept=kept or "No matrix.",
        ),
        encoding="utf-8",
    )


def _front_matter(source: Path) -> dict[str, object]:
    """The YAML header of the float model's card, if it has one."""
    try:
        text = (source / "README.md").read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    return header if isinstance(header, dict) else {}
