"""HTML pages from Jinja templates."""

from pathlib import Path
from typing import Any

import jinja2

from sslrun.base.text import interval, percent, percent_or_dash


def render(template: str, **values: Any) -> str:
    """Return a template filled with values; values are escaped unless they are `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "percent_or_dash": percent_or_dash, "interval": interval}
    return environment.get_template(template).render(**values)
