"""A study as one self-contained HTML page, and as Markdown.

The page needs nothing but itself, and its content security policy forbids the rest: no network, no
script but its own. Every value passes through `visible` and is then escaped by jinja2.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lowbit.evaluation.study import Study
from lowbit.report import gallery, markdown, scoreboard, tables, verdict
from lowbit.report.samples import side_by_side
from lowbit.report.wording import UNMEASURED, plural, size
from lowbit.visible import shortened, visible

# A model's name heads a column; a path may be far longer than one.
LONGEST_NAME = 60
SCRIPT, STYLE = "report.js", "report.css"


def render_html(study: Study) -> str:
    """One page; the same study gives the same text."""
    study = _headed(study)
    environment = _environment(finalize=_shown)
    script, style = _source(environment, SCRIPT), _source(environment, STYLE)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        **_content(study),
        script=Markup(script),
        style=Markup(style),
        digest=digest,
        everything=gallery.everything(study),
        layers=gallery.layers(study),
        maps=gallery.maps(study),
        choices=gallery.choices(study),
        speeds=gallery.speeds(study),
        tradeoffs=gallery.tradeoffs(study),
        svg=Markup,
    )


def render_markdown(study: Study) -> str:
    """The same content; what the page draws, this says in tables or leaves to the page."""
    study = _headed(study)
    environment = _environment(finalize=markdown.escape)
    environment.filters["fenced"] = markdown.fenced
    return environment.get_template("report.md.j2").render(
        **_content(study), errors=markdown.errors(study), standings=markdown.standings(study)
    )


def _headed(study: Study) -> Study:
    names = [shortened(model.name, LONGEST_NAME) for model in study.models]
    models = (replace(m, name=name) for m, name in zip(study.models, names, strict=True))
    return replace(study, models=tuple(models))


def _content(study: Study) -> dict[str, Any]:
    """What both forms say."""
    return {
        "study": study,
        "overall": verdict.overall_verdict(study),
        "verdicts": [
            (model, verdict.model_verdict(study, index), scoreboard.figures(study, index))
            for index, model in enumerate(study.models)
            if index
        ],
        "groups": tables.groups(study),
        "holes": tables.unmeasured(study),
        "worst": tables.worst(study),
        "sides": side_by_side(study),
        "kernels": tables.kernels,
        "recipe": _yaml,
        "size": size,
        "plural": plural,
        "unmeasured": UNMEASURED,
    }


def _environment(finalize: Callable[[Any], Any]) -> Environment:
    return Environment(
        loader=PackageLoader("lowbit.report"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _yaml(recipe: dict[str, Any]) -> str:
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=80).rstrip()
