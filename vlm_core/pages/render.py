"""Renders templates as single HTML files, whose content security policy forbids all network requests."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Returns the page of a template, which may include files of its own directory and of this module's.

    Every value is escaped. A name in the template that has no value is an error.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= dict(filters)
    return environment.get_template(template.name).render(values)
