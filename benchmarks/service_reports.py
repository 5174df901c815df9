"""From a submission to the first thing measured: how long a user waits to see that a search is at work.

    $ python -m benchmarks.service_reports --json

API and runner are processes on this machine, warm: the runner has its spare driver ready. The clock starts before the
request and stops when the first report, or outcome where none comes before, is a file of the store. `local` trains in
worker processes, `ray` on a Ray node that runs already.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.service_processes import Server
from service.client import Client
from service.executors.ray_cluster import Head
from trials import layout
from trials.store import Store

OBJECTIVE: dict[str, Any] = {
    "name": "instant",
    "task": "instant:objective",
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "search": {"sampler": "random"},
    "objective": {"metric": "value", "mode": "min"},
    "budget": {"trials": 4},
    "resources": {"workers": 1, "lanes": 1},
}
DIGITS: dict[str, Any] = {
    "name": "digits",
    "task": "uci/digits",
    "network": {"kind": "mlp", "layers": 2},
    "space": {
        **{f"width.{layer}": {"type": "width", "low": 4, "high": 128} for layer in (0, 1)},
        "lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    },
    "training": {"optimizer": "sgd", "batch_size": 64, "epochs": 20},
    "objective": {"metric": "val_error", "mode": "min"},
    "budget": {"trials": 16},
    "resources": {"workers": 1, "lanes": 8},
}
CODE = "def objective(trial):\n    trial.report(1, loss=trial['x'])\n    return trial['x']\n"
SETTLED = 12.0  # seconds after which a runner's next spare driver is ready, also on two cores


def first_report(server: Server, client: Client, spec: dict[str, Any], code: Path | None) -> float:
    """Seconds until something of the search has been measured."""
    began = time.perf_counter()
    search = client.submit(spec, code=code)
    metrics = layout.metrics(Store.open_for_reading(server.store).search(search.id).path)
    while not any(metrics.glob("*/*.arrow")):
        if time.perf_counter() - began > 120:
            raise TimeoutError(f"{search.id}: nothing measured in two minutes; it is {search.refresh().state}")
        time.sleep(0.005)
    took = time.perf_counter() - began
    search.wait(120)
    return took


def figures(executor: str, repeats: int) -> dict[str, Any]:
    """`first_report_<executor>_<what>_s`: the median, and all."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="continua-report-") as name:
        directory = Path(name)
        code = directory / "code"
        code.mkdir()
        (code / "instant.py").write_text(CODE)
        if executor == "ray":
            with Head(cpus=2) as head, Server(directory, head.environment) as server:
                found = _measured(server, executor, code, repeats)
        else:
            with Server(directory) as server:
                found = _measured(server, executor, code, repeats)
    return found


def _measured(server: Server, executor: str, code: Path, repeats: int) -> dict[str, Any]:
    server.start("work", "--executor", executor)
    found: dict[str, Any] = {}
    with Client(server.url, server.token) as client:
        for what, spec, directory in (("objective", OBJECTIVE, code), ("digits", DIGITS, None)):
            taken = []
            for number in range(repeats + 1):  # the first is not counted: caches of the file system fill
                time.sleep(SETTLED)
                taken.append(first_report(server, client, {**spec, "seed": number}, directory))
            found[f"first_report_{executor}_{what}_s"] = {"median": median(taken[1:]), "all": taken[1:]}
    return found


def whole() -> dict[str, Any]:
    """Both executors."""
    return figures("local", 5) | figures("ray", 3)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="the local executor, once")
    options = parser.parse_args()
    found = figures("local", 1) if options.quick else whole()
    if options.json:
        print(json.dumps(found))
        return
    for name, seconds in found.items():
        print(f"{name:34} {seconds['median']:6.2f}   {', '.join(f'{s:.2f}' for s in seconds['all'])}")


if __name__ == "__main__":
    main()
