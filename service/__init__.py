"""The service, its executors and its command line; `from service import Client` is the way in from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client import AsyncClient, AsyncSearch, Client, Search

__all__ = ["AsyncClient", "AsyncSearch", "Client", "Search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service import client

    return getattr(client, name)
