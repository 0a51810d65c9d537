"""A hook of mkdocs: equations become MathML while the site is built, so that no page needs a script to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

_SYMBOLS = ("02205",)
"""What the converter takes for an operator, and sets with space around it: the empty set."""


def on_page_content(content: str, **_: Any) -> str:
    """Replace what pymdownx.arithmatex has marked on a page."""
    return _EQUATION.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    tag, bracket, latex = found.groups()
    display = "block" if bracket == "[" else "inline"
    mathml = convert(html.unescape(latex).strip(), display=display)
    for entity in _SYMBOLS:
        mathml = mathml.replace(f"<mo>&#x{entity};</mo>", f"<mi>&#x{entity};</mi>")
    return f'<{tag} class="arithmatex">{mathml}</{tag}>'
