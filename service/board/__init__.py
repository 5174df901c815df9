"""What is in flight: the contract in `contract`, one file a backend.

>>> board = open_board("sqlite:///var/continua/board.sqlite")
>>> board = open_board("redis://127.0.0.1:6379/0")
"""

from __future__ import annotations

from service.board.contract import PRIORITY, Board, Job, LeaseLost, Unreachable

__all__ = ["PRIORITY", "Board", "Job", "LeaseLost", "Unreachable", "open_board"]


def open_board(url: str) -> Board:
    """The board at a URL: `sqlite:///path`, or `redis://`, `rediss://` or `unix://` as redis-py reads them.

    Raises:
        Invalid: when it is not such a URL, the file cannot be one of ours, or the server is none that we can use.
        Unreachable: when the server does not answer.
    """
    from search_spaces.faults import Invalid
    from service.board.rules import masked

    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/"):
        from service.board.sqlite import SQLiteBoard

        return SQLiteBoard(rest)
    if scheme in ("redis", "rediss", "unix"):
        from service.board.redis import RedisBoard

        return RedisBoard(url)
    raise Invalid([f"board: must be sqlite:///FILE or redis://HOST:PORT/0, but got {masked(url)!r}."])
