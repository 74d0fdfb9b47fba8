"""HTML pages: one base template and one stylesheet for all of them.

    html = render(Path(__file__).with_name("gallery.html"), title="samples", …)

A page's own template lies beside the module that fills it, begins with ``{% extends "base.html" %}`` and defines the
block ``content``. Values are escaped. A page holds its style and opens from ``file://`` without any other file.

A page that is served under a content security policy is given ``nonce``, and has it in its own ``<style>`` and
``<script>``, too.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_SHARED = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """Return the page that the file ``template`` makes of ``values``; ``title`` is one that every page needs.

    Raises:
        jinja2.TemplateError: the template is missing or wrong, or a value that it names is not given.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@lru_cache
def _environment(folder: Path) -> Environment:
    """Return the environment for templates in ``folder``, which may extend those of this package."""
    environment = Environment(
        loader=FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment
