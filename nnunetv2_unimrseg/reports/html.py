"""Self-contained HTML pages from the templates in `templates/`; `base.html.j2` describes their parts."""

from __future__ import annotations

import base64
import math
import mimetypes
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

NOTHING = "–"
"""Shown where there is no number."""


def render(template: str, **context: Any) -> str:
    """Return the page that a template of `templates/` makes of `context`.

    Everything in `context` is escaped. The templates know the filters `percent`, `number`, `signed`, `data_uri`
    and `breakable` (functions of this module) and jinja's own; a name that is not in `context` is an error.

    Args:
        template: its file name, such as "comparison.html.j2".
        **context: the names that it uses.
    """
    return _environment().get_template(template).render(context)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunetv2_unimrseg.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name.__name__: name for name in (percent, number, signed, data_uri, breakable)}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share from 0 to 1, such as Dice, in percent without the sign; `NOTHING` for None and NaN."""
    return number(None if value is None else 100 * value, digits)


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with `digits` decimals; `NOTHING` for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 1) -> str:
    """Return a number with its sign, plus included; `NOTHING` for None and NaN."""
    text = number(value, digits)
    return text if value is None or not round(value, digits) > 0 else f"+{text}"


def breakable(name: str) -> Markup:
    """Return a name as HTML that may break after underscores and before capitals, so that columns can be narrow."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=_)(?=.)|(?<=[a-z])(?=[A-Z])|(?<=[a-z][0-9])(?=[A-Z])", str(name)))


def data_uri(image: str | Path | bytes) -> str:
    """Return an image as `data:` address: a file, or the bytes of a PNG, JPEG or WebP."""
    if isinstance(image, bytes):
        kind = _detect_kind(image)
        content = image
    else:
        kind = mimetypes.guess_type(str(image))[0] or "application/octet-stream"
        content = Path(image).read_bytes()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _detect_kind(content: bytes) -> str:
    starts = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
    return next((kind for start, kind in starts.items() if content.startswith(start)), "application/octet-stream")
