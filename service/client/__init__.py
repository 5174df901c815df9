"""A service from Python: submit searches, watch them, change what is wanted of them, read their tables.

    >>> from service import Client
    >>> search = Client().submit({"task": "uci/digits", ...})
    >>> search.scale(4)
    >>> search.wait(timeout=600).trials().to_pandas()

calls           what is asked and what answers mean, without any sending
connection      sends it, with threads or asyncio
searches        `Client` and `Search`; `searches_async` has the same for asyncio
errors, events  what a service may refuse with, and what it tells

Neither torch nor ray is loaded, and pyarrow only when a table is asked for.
"""

from __future__ import annotations

from service.client.errors import Conflict, Invalid, NotFound, ServiceError, Unauthorised, Unreachable
from service.client.events import Event
from service.client.searches import Client, Search
from service.client.searches_async import AsyncClient, AsyncSearch

__all__ = [
    "AsyncClient",
    "AsyncSearch",
    "Client",
    "Conflict",
    "Event",
    "Invalid",
    "NotFound",
    "Search",
    "ServiceError",
    "Unauthorised",
    "Unreachable",
]
