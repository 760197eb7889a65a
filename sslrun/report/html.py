"""Pages: a template with values."""

from pathlib import Path
from typing import Any

import jinja2


def rendered(template: str, **values: Any) -> str:
    """Return a page; what stands in it is text, unless it is marked up."""
    return (
        jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        .get_template(template)
        .render(**values)
    )
