"""Where a command looks: into the store, or to a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.faults import Invalid
from service.show import say

if TYPE_CHECKING:
    from service.client import Client
    from service.summary import WitnessStore

MOST_WARNINGS = 5  # damaged files that are named one by one


def reading(flag: str | None) -> WitnessStore:
    """The store, for reading alone."""
    from service.settings import store_root
    from service.summary import WitnessStore

    return WitnessStore(store_root(flag)[0])


def service_for(store: str | None, url: str | None) -> Client | None:
    """The service, where `--url`, CONTINUA_URL or a file names one and `--store` does not overrule that; else None: the
    store itself is meant.

    Raises:
        Invalid: when both are asked for, or the settings are faulty.
    """
    if store is not None and url is not None:
        raise Invalid(["continua: needs either --store, a directory, or --url, a service; got both, leave one out."])
    if store is not None:
        return None
    from service.settings import service_url

    found = service_url(url)
    if found is None:
        return None
    from service.client import Client

    return Client(found.value)


def submitting_to(store: str | None, url: str | None) -> Client:
    """The service that takes searches: the one that is named, else the one that `continua up` started on the store.
    Raises `Invalid` where there is none."""
    from service.client import Client
    from service.client.found import service

    if store is not None and url is None:
        from service.settings import started_url, store_root

        if (started := started_url(store_root(store)[0])) is not None:
            url = started.value
    return Client(service(url, None, store)[0])


def warn_of_damage(witness: WitnessStore) -> None:
    """Say which files were passed over in what was looked at."""
    damaged = list({damage.path: damage for search in witness.opened for damage in search.damaged}.values())
    for damage in damaged[:MOST_WARNINGS]:
        say(f"warning: {damage}")
    if damaged:
        more = len(damaged) - MOST_WARNINGS
        say(f"warning: {'' if more <= 0 else f'and {more} more; '}all of that is left out; see `continua doctor`")
