"""What tables and figures state of themselves, in their HTML pages and PNG pictures. Nothing here imports torch."""

import html
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from satm.storage.files import atomic_path
from satm.storage.identity import Identity

KEY = "satm"
"""Name of the page's metadata, and keyword of the picture's text."""

FORMS = "forms"
"""Field with the hashes of the other files of a table or figure, by what follows its name."""

META = re.compile(rf'<meta name="{KEY}" content="([^"]*)">')

HEAD = 33
"""Bytes of a PNG file before its second chunk."""

TEXT = b"tEXt" + KEY.encode() + b"\0"
"""Beginning of the chunk with the text."""


def page_metadata(identity: Identity) -> str:
    """Return the line of a page's head that states its identity."""
    return f'<meta name="{KEY}" content="{html.escape(json.dumps(identity))}">\n'


def state_in_picture(path: Path, identity: Identity) -> None:
    """Add an identity to a PNG file, as a text chunk after its header (errors: `atomic_path`)."""
    content, chunk = path.read_bytes(), TEXT + json.dumps(identity).encode("ascii")
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with atomic_path(path) as part:
        part.write_bytes(content[:HEAD] + framed + content[HEAD:])


def stated_by_exhibit(path: Path) -> Identity | None:
    """Return the identity that a page (html) or picture (png) states; None: it is missing or states none."""
    try:
        content = path.read_bytes()
        if path.suffix == ".html":
            found = META.search(content.decode())
            stated: Any = json.loads(html.unescape(found[1])) if found else None
        else:
            (length,) = struct.unpack(">I", content[HEAD : HEAD + 4])
            chunk = content[HEAD + 4 : HEAD + 8 + length]
            stated = json.loads(chunk.removeprefix(TEXT)) if chunk.startswith(TEXT) else None
    except (OSError, ValueError, struct.error, RecursionError):
        return None
    return stated if isinstance(stated, dict) and isinstance(stated.get(FORMS, {}), dict) else None
