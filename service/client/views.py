"""A search in a notebook: a small table of HTML in which nothing that it says of itself can do harm.

>>> search_html({"search_id": "digits-3fa2b1", "name": "<script>", "state": "running"})
'<table>...<td>&lt;script&gt;</td>...'
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def search_html(row: Mapping[str, Any]) -> str:
    """Id, name, state, trials by ending, and the best value."""
    best, endings = row.get("best"), row.get("trials")
    told = ", ".join(f"{count} {ending}" for ending, count in endings.items()) if isinstance(endings, Mapping) else ""
    facts = {
        "search": row.get("search_id", ""),
        "name": row.get("name", ""),
        "state": row.get("state", ""),
        "trials": told or "-",
        "best": f"{row.get('metric')} {_short(best.get('value'))}" if isinstance(best, Mapping) else "-",
    }
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f"<table>{lines}</table>"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
