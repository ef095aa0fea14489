"""A document as a page that needs nothing else: no script, no address to load from."""

from __future__ import annotations

from functools import cache

import jinja2

from busbar_billing.adapters.documents.layout import lay_out
from busbar_billing.usecases.statements import Issued


def render_html(issued: Issued) -> bytes:
    """UTF-8."""
    return _template().render(document=lay_out(issued)).encode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("busbar_billing.adapters.documents"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("document.html")
