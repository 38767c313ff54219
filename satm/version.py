"""The version, and where this copy of the package lies."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).parent
"""Folder of the package."""

CHECKOUT = PACKAGE.parent
"""Root of the checkout; in an installed package a folder that is none, such as `site-packages`."""


def shipped(name: str, checkout: str) -> Path:
    """Return a file or folder that the wheel holds under `name`, and a checkout under `config/`.

    Args:
        name: inside an installed package, such as ``presets``.
        checkout: from the root of a checkout, such as ``config/presets``.
    """
    installed = PACKAGE / name
    return installed if installed.exists() else CHECKOUT / checkout
