"""The version, and the folder of this copy of the package."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).parent
"""Folder of the package."""

CHECKOUT = PACKAGE.parent
"""Root of the checkout; for an installed package another folder, such as `site-packages`."""


def shipped(name: str, checkout: str) -> Path:
    """Return a file of the installed package, such as ``presets``, or else of the checkout, ``config/presets``."""
    installed = PACKAGE / name
    return installed if installed.exists() else CHECKOUT / checkout
