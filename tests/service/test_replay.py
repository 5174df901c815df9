"""What a controller takes from its log when somebody wrote into it who should no longer have."""

from __future__ import annotations

from typing import Any

from service.replay import Past
from trials import layout
from trials.log import LogWriter
from trials.store import Store


def asked(generation: int, numbers: range, x: float) -> dict[str, Any]:
    return {
        "generation": generation,
        "trials": [{"number": number, "point": {"x": x}} for number in numbers],
        "infeasible": [],
    }


def test_what_a_controller_without_a_driver_still_asked_is_not_asked_twice(tmp_path):
    search = Store(tmp_path).create("a", {"name": "a"})
    old = search.log_writer(1)
    old.append("asked", asked(0, range(4), 1.0))
    new = LogWriter(layout.log(search.path), 2)  # in the moment before the epochs of others are closed
    new.append("asked", asked(1, range(4, 8), 2.0))
    old.append("asked", asked(1, range(4, 8), 3.0))
    old.append("asked", asked(2, range(8, 12), 3.0))
    new.append("asked", asked(2, range(8, 12), 2.0))
    points = [[(t["number"], t["point"]["x"]) for t in body["trials"]] for body in Past.of(search.log()).asked]
    assert points == [[(n, x) for n in range(4 * g, 4 * g + 4)] for g, x in enumerate((1.0, 2.0, 2.0))]
