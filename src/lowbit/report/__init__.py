"""What quantization did, for people: one HTML page, the same as Markdown, and the data as JSON."""

from lowbit.report.page import render_html, render_markdown
from lowbit.report.writing import check_paths, write

__all__ = ["check_paths", "render_html", "render_markdown", "write"]
