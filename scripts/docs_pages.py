"""Hooks of mkdocs: pages of the site that are made from files of the repository.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages too, and the docstrings of lowbit's verbs are
the page on the command line, so that one text stands in one place.
"""

import ast
import re
from inspect import cleandoc
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
CLI = ROOT / "src" / "lowbit" / "cli"


def on_files(files, config):
    """Add the pages that are not in docs/."""
    made = {page: inside((ROOT / file).read_text("utf-8")) for page, file in PAGES.items()}
    made["reference/command-line.md"] = command_line()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to what the site does not have become names: folders, sources, JSON."""
    absent = r"\[([^\]]+)\]\((?!https?:|#)[^)#]*(?<!\.md)\)"
    return re.sub(absent, r"\1", outside(markdown))


def inside(text):
    """Links of a file at the root, as they are from docs/."""
    for page, file in PAGES.items():
        text = text.replace(f"]({file})", f"]({page})")
    return re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", text)


def outside(text):
    """Links from docs/ to files of the root that are pages, or that are no pages."""
    for page, file in PAGES.items():
        text = text.replace(f"](../{file})", f"]({page})")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+[A-Z]+\.md\)", r"\1", text)


def command_line():
    """The verbs with their help, as the docstrings have it; nothing is imported."""
    lines = [
        "# Command line",
        "",
        "`lowbit VERB --help` lists the options of a verb with their defaults.",
        "",
    ]
    verbs = ast.literal_eval(
        re.search(r"^VERBS = (\(.*?\))", (CLI / "__init__.py").read_text("utf-8"), re.S | re.M)[1]
    )
    for verb in verbs:
        own = CLI / f"{verb}.py"
        tree = ast.parse((own if own.exists() else CLI / f"{verb}_.py").read_text("utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            is_task = any(ast.unparse(d) == "task" for d in node.decorator_list)
            if node.name.rstrip("_") == verb or is_task:
                name = f"{verb} {node.name.replace('_', '-')}" if is_task else verb
                lines += [f"## lowbit {name}", "", cleandoc(ast.get_docstring(node) or ""), ""]
    return "\n".join(lines)
