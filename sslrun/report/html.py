"""Pages: a template with values."""

from pathlib import Path
from typing import Any

import jinja2

from sslrun.base.text import percent


def rendered(template: str, **values: Any) -> str:
    """Return a page; what stands in it is text, unless it is marked up."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**values)
