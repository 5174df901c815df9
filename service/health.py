"""Examining a search's files: what is damaged, and moving it out of the way without deleting it.

>>> list(examined(store.search("digits-3fa2b1"), quarantine=False))
[{'search_id': 'digits-3fa2b1', 'path': '.../final-0000000001-3f0c....arrow', 'reason': '...', 'moved_to': None}]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trials import layout
from trials.segments import sync_directory
from trials.store import Damaged, Held, SearchStore

COLUMNS = ("search_id", "path", "reason", "moved_to")


def examined(search: SearchStore, quarantine: bool) -> Iterator[dict[str, str | None]]:
    """A row of `COLUMNS` for each damaged file of a search, all read anew.

    With `quarantine` it is moved to the same place under `<search>/quarantine`, unless a live process has the search.
    """
    found = search.verify()
    try:
        search.spec()
    except Damaged as error:
        found = [error, *found]
    note = ""
    with contextlib.ExitStack() as held:
        if quarantine and found:
            try:
                held.enter_context(search.lease())
            except Held:
                note = " Not moved: a live process has the search."
        for damage in found:
            moved = _moved(search.path, damage.path) if quarantine and not note else None
            yield {"search_id": search.id, "path": str(damage.path), "reason": damage.reason + note, "moved_to": moved}


def _moved(search_path: Path, path: Path) -> str | None:
    """Where the file went; None where there is nothing to move, or what it declares cannot be missed."""
    if path == layout.spec(search_path) or not path.exists():
        return None
    target = search_path / "quarantine" / path.relative_to(search_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    sync_directory(target.parent)
    sync_directory(path.parent)
    return str(target)
