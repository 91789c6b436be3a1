"""How the documentation is built: `python -m sphinx -W docs docs/_build`."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from tomoscale import __version__

project = "tomoscale"
author = "The tomoscale developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"tomoscale {release}"
html_show_sourcelink = False
default_role = "code"

autodoc_typehints = "none"  # the text says it in the users' words
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

WIDTH = 100


def _help(words: list[str]) -> str:
    """Return what the command says of itself, at a fixed width and without colours."""
    from tomoscale import cli

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        status = cli.main([*words, "--help"])
    if status or not text.getvalue().strip():
        raise RuntimeError(f"no help for tomoscale {' '.join(words)}")
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def write_command_reference(app: Any) -> None:
    """Write one page with the help of every subcommand."""
    from tomoscale import cli

    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    commands = sorted({f.command for f in cli.functions()})
    lines = ["# The command", "", "Made from the signatures and docstrings when these pages were built.", ""]
    for words in [[], *(c.split() for c in commands)]:
        title = " ".join(["tomoscale", *words])
        lines += [f"## {title}", "", "```text", _help(words), "```", ""]
    page = Path(app.srcdir) / "reference" / "command.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(lines), encoding="utf-8")


def setup(app: Any) -> None:
    """Write the generated pages before the others are read."""
    app.connect("builder-inited", write_command_reference)
