"""What Prometheus is told: requests as they come, and searches, trials, queue and leases when it asks.

>>> measures.answered("/v1/searches", 201, seconds=0.004)
>>> measures.text()
b'# HELP continua_requests_total ...'
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Measures:
    """One registry an app, so that two apps in a process keep apart."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter("continua_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram(
            "continua_request_seconds",
            "Seconds to the end of the answer",
            ["route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._searches = Gauge("continua_searches", "Searches by state", ["state"], registry=registry)
        self._trials = Gauge("continua_trials", "Trials that ended, by ending", ["ending"], registry=registry)
        self._queue = Gauge("continua_queue_length", "Searches that wait for a runner", registry=registry)
        self._leases = Gauge("continua_live_leases", "Searches that a runner works on", registry=registry)
        self._watchers = Gauge("continua_watchers", "Event streams that are open", registry=registry)
        self._board = Gauge("continua_board_up", "Whether the board answers", registry=registry)

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """A request was answered; `seconds` is None for a stream, whose length says nothing."""
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)

    def found(
        self, *, states: Mapping[str, int], endings: Mapping[str, int], leases: int, watchers: int, board: bool
    ) -> None:
        """How things stand now."""
        self._searches.clear()
        for state, count in states.items():
            self._searches.labels(state).set(count)
        self._trials.clear()
        for ending, count in endings.items():
            self._trials.labels(ending).set(count)
        self._queue.set(states.get("queued", 0))
        self._leases.set(leases)
        self._watchers.set(watchers)
        self._board.set(board)

    def text(self) -> bytes:
        """All of it, in Prometheus' own format."""
        return generate_latest(self._registry)
