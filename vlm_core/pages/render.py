"""From a template and values to a page: one HTML file, which its own policy forbids to ask the network for anything."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Returns the page of a template, which may include files that lie beside it, or beside this module.

    Every value is escaped; a name that the template does not get is an error.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= dict(filters)
    return environment.get_template(template.name).render(values)
