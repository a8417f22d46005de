"""The pictures of the report: data in, SVG text out."""
