"""Where the service is and what opens it, when a client is not told.

>>> service(None, None)
('http://127.0.0.1:8642', '...')
"""

from __future__ import annotations

from pathlib import Path

from search_spaces.faults import Invalid
from service import settings


def service(url: str | None, token: str | None, store: str | None = None) -> tuple[str, str | None]:
    """URL and token: those given, else those of the settings, else of what `continua up` started on the store.

    Raises:
        Invalid: when nobody says where a service is, or what is said of it cannot be.
    """
    found = settings.service_url(url) or settings.started_url(root := settings.store_root(store)[0])
    if found is None:
        raise Invalid([_none(root)])
    if token is None and (secret := settings.token()) is not None:
        if not settings.by_the_user(found):
            raise Invalid([_stranger(found)])
        token = secret.value
    return found.value, token


def _stranger(found: settings.Setting) -> str:
    """Whoever wrote a file in the working directory, or in a store, is not to get the user's token by it."""
    rule = "a token goes only to a service that its user named, or to this machine"
    return f"url ({found.origin}): {rule}, but got {found.value}; say --url or CONTINUA_URL if you mean that one."


def _none(root: Path) -> str:
    ways = "start one here with `continua up`, or name one by --url, CONTINUA_URL, or `url` in continua.toml"
    return f"url: must be known, but nobody says where a service is, and none was started on {root}; {ways}."
