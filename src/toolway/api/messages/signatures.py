"""What must come back with a turn of the model, in a block that clients carry unread.

That is the `signature` of a thinking block, or the `data` of a redacted one. It is encoded, not encrypted: all in it is
of the client's own conversation.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from toolway.types import JSON
from toolway.wire.lenient_json import dumps, loads_harmless

PREFIX = "toolway."


def sealed(state: JSON) -> str:
    """The state as text that may stand in a block."""
    return PREFIX + base64.urlsafe_b64encode(dumps(state)).decode()


def unsealed(signature: Any) -> JSON:
    """The state in a signature; nothing in one that was not made here."""
    if not isinstance(signature, str) or not signature.startswith(PREFIX):
        return {}
    try:
        state = loads_harmless(base64.urlsafe_b64decode(signature.removeprefix(PREFIX)))
    except (binascii.Error, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
