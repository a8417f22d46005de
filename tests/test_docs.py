"""The Python in the documentation runs, and what it asserts holds."""

import re
import shlex
from inspect import getdoc
from pathlib import Path

import pytest
from typer.main import get_command

import lowbit
from lowbit.cli import commands
from tests.models import make
from tests.small_tokenizers import words

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    if "```python" in page.read_text()
)

NEEDS = {
    "peft.md": ["peft"],
    "onnx.md": ["onnxscript", "onnxruntime", "transformers.exporters"],
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=p.name, marks=pytest.mark.slow if p.name == "onnx.md" else ())
        for p in PAGES
    ],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package, reason=f"{page.name} needs the package {package}")
    monkeypatch.chdir(tmp_path)
    # The process that measures peak memory imports torch: seconds for each model.
    monkeypatch.setattr("lowbit.evaluation.record.peak_bytes", lambda folder: 400 << 20)
    make("gpt2").save_pretrained("gpt2")
    words(*(f"w{i}" for i in range(150))).save_pretrained("gpt2")
    Path("wiki.txt").write_text(" ".join(f"w{i * 7 % 150}" for i in range(800)))
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {})


def test_there_are_pages_to_run():
    assert {
        "README.md",
        "any-module.md",
        "quantize.md",
        "recipes.md",
        "solvers.md",
        "training.md",
        "decoding.md",
        "evaluation.md",
        "onnx.md",
        "peft.md",
        "affine.md",
        "binary.md",
        "stacked.md",
        "clustered.md",
        "absmax.md",
        "zero-point.md",
    } <= {page.name for page in PAGES}


@pytest.mark.parametrize(("page", "rules"), [("recipes.md", 3), ("training.md", 2)])
def test_the_yaml_of_a_page_is_a_recipe(tmp_path, page, rules):
    from lowbit.conversion.recipe import load_recipe

    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    assert len(load_recipe(tmp_path / "recipe.yaml").rules) == rules


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_in_the_table_of_the_readme_have_what_they_need():
    rows = [row for row in (ROOT / "README.md").read_text().split("\n") if row.startswith("| ")]
    given = [shlex.split(command) for row in rows for command in re.findall("`lowbit (.+?)`", row)]
    assert {"search", "compare", "import", "export", "train"} <= {words[0] for words in given}
    for verb, *rest in given:
        command = get_command(commands([verb])).commands[verb]
        while hasattr(command, "commands"):
            verb, *rest = rest
            command = command.commands[verb]
        command.make_context(verb, rest)  # raises for an option that is unknown or missing


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    for name in lowbit.__all__:
        assert re.search(rf"(\.|lowbit\.){name}\b", page, re.MULTILINE), name


def test_every_page_is_in_the_site():
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    made = {"index.md", "contributing.md", "changelog.md", "reference/command-line.md"}
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(listed) - made == {page for page in pages if not page.startswith("results/")}


def test_every_public_function_has_a_docstring_of_sections():
    for name in lowbit.__all__:
        told = getattr(lowbit, name)
        if callable(told) and not isinstance(told, type) and told.__module__.startswith("lowbit."):
            has_sections = re.search(r"^(Args|Returns|Raises):", getdoc(told), re.MULTILINE)
            assert has_sections, name
