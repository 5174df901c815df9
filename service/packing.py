"""Which trials train together, and from which checkpoint.

    >>> packed(plan, trials, lanes=16, generation=3)
    [Bundle(id='b000048-9f0c1d22', ...)]

A bundle's trials share a signature and, where lanes are padded, a shape class; those that go on from a checkpoint share
it, so that their lanes are at the same step.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Container, Mapping, Sequence

from trials import checkpoints, layout
from trials.ledger import most_flops
from trials.plan import Plan
from trials.records import Bundle, Start, Trial
from trials.store import SearchStore


def packed(
    plan: Plan, trials: Sequence[Trial], *, lanes: int, generation: int, starts: Mapping[int, Start] | None = None
) -> list[Bundle]:
    """Bundles of at most `lanes` trials: the costliest first and spread evenly. `starts` are checkpoints, by trial."""
    starts, alike = starts or {}, dict[object, list[Trial]]()
    for trial in trials:
        key = (plan.space.signature(trial.point), plan.shape_class(trial.point), starts.get(trial.number))
        alike.setdefault(key, []).append(trial)
    bundles = []
    for group in alike.values():
        ranked = sorted(group, key=lambda t: (-most_flops(plan, t.point), t.number))
        count = -(-len(ranked) // lanes)
        start = starts.get(ranked[0].number)
        bundles += [bundle_of(ranked[i::count], generation, start) for i in range(count)]
    return bundles


def halves(trials: Sequence[Trial], generation: int, starts: Mapping[int, Start]) -> list[Bundle]:
    """What a lost bundle's trials are handed out again in: halves, so that one that kills its worker is soon alone."""
    together: dict[Start | None, list[Trial]] = {}
    for trial in trials:
        together.setdefault(starts.get(trial.number), []).append(trial)
    bundles = []
    for start, group in together.items():
        half = -(-len(group) // 2)
        bundles += [bundle_of(part, generation, start) for part in (group[:half], group[half:]) if part]
    return bundles


def bundle_of(trials: Sequence[Trial], generation: int, start: Start | None = None) -> Bundle:
    """Those trials as one bundle; its id says which they are, so that the same trials are always the same bundle."""
    members = tuple(sorted(trials, key=lambda t: t.number))
    numbers = ",".join(str(t.number) for t in members)
    bundle_id = f"b{members[0].number:06d}-{hashlib.sha256(numbers.encode()).hexdigest()[:8]}"
    return Bundle(search_id=members[0].search_id, id=bundle_id, generation=generation, trials=members, start=start)


class Checkpoints:
    """The durable checkpoints of a search whose trials have not all ended."""

    def __init__(self, search: SearchStore) -> None:
        self._directory = layout.checkpoints(search.path)
        self._members: dict[Start, frozenset[int]] = {}

    def starts(self) -> dict[int, Start]:
        """For each trial that is in one, the checkpoint after the most steps."""
        found: dict[int, Start] = {}
        for start, numbers in self._read().items():
            for number in numbers:
                if number not in found or found[number].step < start.step:
                    found[number] = start
        return found

    def drop(self, told: Container[int]) -> None:
        """Remove those of which every trial is told."""
        for start, numbers in self._read().items():
            if numbers and all(number in told for number in numbers):
                with contextlib.suppress(OSError):  # what is left costs room, and nothing else
                    checkpoints.forget(self._directory, start.bundle_id, start.attempt)

    def _read(self) -> dict[Start, frozenset[int]]:
        """Whose lanes each has; one that cannot be read has none."""
        there = checkpoints.places(self._directory)
        starts = [
            Start(bundle_id=bundle_id, attempt=attempt, step=step) for (bundle_id, attempt), step in there.items()
        ]
        known = self._members
        self._members = {s: known.get(s) or frozenset(checkpoints.trials_in(self._directory, s)) for s in starts}
        return self._members
