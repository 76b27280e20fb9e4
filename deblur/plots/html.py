"""Render HTML templates, which may extend page.html.j2."""

from typing import Any

import jinja2


def render(package: str, template: str, **values: Any) -> str:
    """Renders a package's template with these values; text in them is escaped."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, "deblur.plots")])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(values)
