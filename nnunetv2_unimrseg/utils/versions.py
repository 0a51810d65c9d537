"""The versions that results record."""

from __future__ import annotations

import platform
from importlib.metadata import version

from nnunetv2_unimrseg import __version__


def package_versions(*packages: str) -> dict[str, str]:
    """Return the version of this package, of others that are installed, and of Python."""
    others = {name: version(name) for name in packages}
    return {"nnunetv2-unimrseg": __version__, **others, "python": platform.python_version()}
