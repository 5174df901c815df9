"""The reports of trials as curves: each trial's from its first step on, through all attempts that it went on from.

    b0.0    10 20 30 40          b0.0 is cut off after step 40, its last checkpoint is of step 30
    b7.0             40 50       two of its trials go on from there in another bundle: their curve is 10 20 30 | 40 50

An attempt says itself which checkpoint it goes on from (`AttemptWriter`). Of one that does not, what lies before its
first report is that of the attempt before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from trials import rows
from trials.attempts import start_of
from trials.records import Start

Place = tuple[str, int]  # a bundle, and the number of an attempt at it


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    start: Start | None
    trials: frozenset[str]
    reports: pa.Table


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The reports of a bundle's trials, the earliest first, and the bundles that they went on from."""

    trials: frozenset[str]
    parts: list[pa.Table]
    through: set[str] = field(default_factory=set)


class Curves:
    """The curves of one search, read now; each attempt that is needed is read once.

    Args:
        read: the segments of an attempt.
        places: all attempts, by bundle and number.
        counting: for a bundle, the attempt that counts; of others it is the last.
        told: for each trial told of, the bundle it was told of: nothing else counts of it.
    """

    def __init__(
        self,
        read: Callable[[Place], Iterable[pa.Table]],
        places: Iterable[Place],
        counting: Mapping[str, int],
        told: Mapping[str, str],
    ) -> None:
        self._read, self._told = read, told
        self._numbers: dict[str, list[int]] = {}
        for bundle_id, attempt in places:
            if attempt <= counting.get(bundle_id, attempt):
                self._numbers.setdefault(bundle_id, []).append(attempt)
        self._attempts: dict[Place, _Attempt] = {}

    def parts(self) -> list[pa.Table]:
        """Report rows of every trial, each once."""
        lines = {bundle_id: self._line(bundle_id, max(numbers), ()) for bundle_id, numbers in self._numbers.items()}
        gone: dict[str, set[str]] = {}
        for line in lines.values():
            for bundle_id in line.through:
                gone.setdefault(bundle_id, set()).update(line.trials)
        found = []
        for bundle_id, line in lines.items():
            left = {trial for trial in line.trials if self._has_left(trial, bundle_id, gone.get(bundle_id, ()))}
            found += [_of(part, left, invert=True) if left else part for part in line.parts]
        return found

    def _has_left(self, trial: str, bundle_id: str, gone: Collection[str]) -> bool:
        """Whether a bundle's trial went on in another."""
        told = self._told.get(trial)
        return trial in gone if told is None else told != bundle_id

    def _line(self, bundle_id: str, attempt: int, seen: tuple[Place, ...]) -> _Line:
        place = (bundle_id, attempt)
        own = self._attempt(place)
        before: _Line | None = None
        if own.start is not None:
            parent = (own.start.bundle_id, own.start.attempt)
            if parent not in (*seen, place) and parent[0] in self._numbers:
                before = self._line(*parent, (*seen, place))
                until = own.start.step
                parts = [_of(part.filter(pc.less_equal(part["step"], until)), own.trials) for part in before.parts]
                before = _Line(trials=own.trials, parts=parts, through=before.through | {parent[0]})
        elif earlier := [number for number in self._numbers[bundle_id] if number < attempt]:
            before = self._line(bundle_id, max(earlier), (*seen, place))
            if own.reports.num_rows:
                first = pc.min(own.reports["step"])
                parts = [part.filter(pc.less(part["step"], first)) for part in before.parts]
                before = _Line(trials=before.trials, parts=parts, through=before.through)
        if before is None:
            return _Line(trials=own.trials, parts=[own.reports])
        through = before.through - {bundle_id}
        return _Line(trials=own.trials | before.trials, parts=[*before.parts, own.reports], through=through)

    def _attempt(self, place: Place) -> _Attempt:
        if place not in self._attempts:
            tables = list(self._read(place))
            table = rows.joined(tables)
            self._attempts[place] = _Attempt(
                start=start_of(tables),
                trials=frozenset(table["trial_id"].unique().to_pylist()),
                reports=rows.only(rows.REPORT, table),
            )
        return self._attempts[place]


def _of(table: pa.Table, trials: Collection[str], *, invert: bool = False) -> pa.Table:
    """The rows of some trials, or of all others."""
    chosen = pc.is_in(table["trial_id"], pa.array(sorted(trials), pa.string()))
    return table.filter(pc.invert(chosen) if invert else chosen)
