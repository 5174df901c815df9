"""The service under load, part by part: each figure of `docs/benchmarks.md` on the service comes from here.

    $ python -m benchmarks.service --json              # everything: about fifteen minutes
    $ python -m benchmarks.service api boards --quick

api      submit p50 and p99 at 1, 16 and 64 clients, a thousand queued searches listed, 200 watchers
boards   posts, claims and renewals a second, of both boards
reports  submit to first report with a warm runner, on local workers and on Ray
slots    parallel efficiency with bundles that sleep, at 1 to 64 slots
resume   how long a search of 10,000 and of 100,000 trials takes to go on
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import service_api, service_boards, service_reports, service_resume, service_slots
from benchmarks.machine import facts

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "api": service_api.figures,
    "boards": service_boards.figures,
    "reports": lambda quick: service_reports.figures("local", 1) if quick else service_reports.whole(),
    "slots": lambda quick: service_slots.figures((1, 2, 4), 3) if quick else service_slots.figures(),
    "resume": lambda quick: service_resume.figures((1000,) if quick else (10_000, 100_000)),
}
QUICK = ("api", "boards", "resume")  # what fits in a minute


def main() -> None:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=True
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="smaller, and only what fits in a minute")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": facts()}
    for name in options.parts or (QUICK if options.quick else PARTS):
        began = time.perf_counter()
        part = PARTS[name](options.quick)
        found[name] = {**part, "seconds": time.perf_counter() - began}
        if not options.json:
            print(f"-- {name}")
            for key, value in part.items():
                print(f"{key:34} {_words(value)}", flush=True)
    if options.json:
        print(json.dumps(found))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + " ".join(_words(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
