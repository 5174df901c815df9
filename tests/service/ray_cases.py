"""What the tests with Ray clusters share: drivers in processes of their own, and patience on a busy machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.executors.ray_cluster import Head
from trials.store import SearchStore, Store

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from pathlib import Path
import service.driver
from service.driver import resume
from trials.store import Store

root, search_id, directory, runtime_env, every = sys.argv[1:]
service.driver.CHECKPOINT_EVERY = float(every)
environment = json.loads(runtime_env)
result = resume(Store(root), search_id, executor="ray", directory=Path(directory), runtime_env=environment)
print(result.state)
"""


def until(happened: Callable[[], Any], patience: float = 150.0) -> Any:
    """What `happened` returns once it is true."""
    deadline = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def created(store: Store, name: str, directory: Path, **spec: Any) -> SearchStore:
    """A search over the `objective` of the module `objective` in that directory, which nobody drives yet."""
    base = {
        "task": "objective:objective",
        "space": {"x": {"type": "float", "low": 0, "high": 1}},
        "search": {"sampler": "random", "batch": 8},
        "resources": {"workers": 1, "lanes": 1},
    }
    document = {"name": name, "labels": {}, "replay": False, "directory": str(directory), "versions": {}}
    return store.create(name, {**document, "spec": {**base, **spec}})


@contextmanager
def driven(
    head: Head,
    store: Store,
    search: SearchStore,
    directory: Path,
    runtime_env: Mapping[str, Any] | None = None,
    checkpoint_every: float = 10.0,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A driver of that search on that cluster; ended on leaving."""
    told = [str(store.root), search.id, str(directory), json.dumps(runtime_env), str(checkpoint_every)]
    argv = [sys.executable, "-c", DRIVER, *told]
    environment = {**os.environ, **head.environment, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def end_of(driver: subprocess.Popen[str]) -> str:
    """The state that a driver's search ended in."""
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0
    return said.split()[-1]  # Ray may have told of lost nodes before
