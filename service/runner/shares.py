"""How many worker slots each running search gets: weighted max-min fairness in whole slots.

>>> wide, narrow = Demand(id="a", owner="ada", priority=20, workers=9), Demand(id="b", owner="bob", workers=9)
>>> shares(6, [wide, narrow])
{'a': 4, 'b': 2}

Every search first gets one slot, while there are any: the highest priority first, then the oldest. Each further slot
goes to the search that has the fewest for its priority and still wants one. So no slot idles that somebody may use, and
none could be moved to a search that is worse off. The same list gives every runner the same answer.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.board.contract import PRIORITY

ANY = "*"  # the quota of owners that are not named


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A search that runs, and the slots that it wants."""

    id: str
    owner: str = ""
    priority: int = PRIORITY
    workers: int = 1


def shares(capacity: int | None, demands: Sequence[Demand], quotas: Mapping[str, int] | None = None) -> dict[str, int]:
    """The slots of each search by its id.

    Args:
        capacity: slots that there are altogether; None: as many as are wanted.
        demands: the oldest search first.
        quotas: the most slots that an owner's searches may have together; `*` is any other owner's.
    """
    given = {demand.id: 0 for demand in demands}
    left = sum(demand.workers for demand in demands) if capacity is None else max(capacity, 0)
    room = _rooms(demands, quotas or {}, left)

    def give(demand: Demand) -> bool:
        nonlocal left
        if left <= 0 or room[demand.owner] <= 0 or given[demand.id] >= demand.workers:
            return False
        given[demand.id] += 1
        room[demand.owner] -= 1
        left -= 1
        return True

    ranked = sorted(demands, key=lambda demand: -demand.priority)  # stable: the oldest first among equals
    waiting = [(1 / demand.priority, rank, demand) for rank, demand in enumerate(ranked) if give(demand)]
    heapq.heapify(waiting)
    while waiting and left > 0:
        _, rank, demand = heapq.heappop(waiting)
        if give(demand):
            heapq.heappush(waiting, (given[demand.id] / demand.priority, rank, demand))
    return given


def _rooms(demands: Sequence[Demand], quotas: Mapping[str, int], most: int) -> Counter[str]:
    """The slots that each owner may still take."""
    return Counter({demand.owner: quotas.get(demand.owner, quotas.get(ANY, most)) for demand in demands})
