"""Is there an OpenAPI document at an endpoint? Asked where the URL looks as if there were something else."""

from __future__ import annotations

import re
from collections.abc import Mapping

import aiohttp

from toolway.tools.openapi.loader import candidate_places

SECONDS = 5.0
_DOCUMENT = re.compile(rb"""["']?(openapi|swagger)["']?\s*:""")


async def has_document(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> bool:
    """Whether one of the places where the document may be holds one."""
    for place in candidate_places(url):
        try:
            async with session.get(
                place.url,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=SECONDS),
                allow_redirects=False,
            ) as answer:
                if answer.status == 200 and _DOCUMENT.search(await answer.content.read(4096)):
                    return True
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            continue
    return False
