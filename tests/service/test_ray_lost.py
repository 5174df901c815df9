"""A search on Ray whose cluster, or whose node, is lost: it is cut off, not failed, and goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray_cases import ROOT, created, driven, end_of, until

from service.executors.ray_cluster import Head
from trials.attempts import start_of

SLEEPING = "import time\ndef objective(trial):\n    time.sleep(0.2)\n    return trial['x']\n"
NO_NODE = """
import os, socket
from service.executors import ray_connection
ray_connection.node_here = lambda: False
with socket.create_server(("127.0.0.1", 0)) as server:
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{server.getsockname()[1]}"
    try:
        ray_connection.connect(1)
    except ConnectionError as error:
        print(error)
"""


@pytest.mark.long
def test_a_lost_cluster_cuts_a_search_off_and_another_goes_on(store, tmp_path):
    (tmp_path / "objective.py").write_text(SLEEPING)
    search = created(store, "headless", tmp_path, budget={"trials": 40})
    with Head(cpus=1, gpus=0) as head, driven(head, store, search, tmp_path, stderr=subprocess.PIPE) as driver:
        until(lambda: len(search.outcomes()) >= 4)
        head._nodes[0].kill()
        _, said = driver.communicate(timeout=200)
    assert driver.returncode != 0
    assert "the Ray cluster does not answer any more" in said
    assert not [event for event in search.log() if event.body.get("state") == "failed"]
    before = {o.number: o.ended for o in search.outcomes()}
    assert 4 <= len(before) < 40
    with Head(cpus=1, gpus=0) as head, driven(head, store, search, tmp_path) as driver:
        assert end_of(driver) == "complete"
    outcomes = search.outcomes()
    assert sorted(o.number for o in outcomes) == list(range(40))
    assert {o.number: o.ended for o in outcomes}.items() >= before.items()


@pytest.mark.long
def test_what_a_lost_node_trained_goes_on_from_its_checkpoint(store, tmp_path, digits_spec):
    spec = digits_spec(
        name=None,
        training={"optimizer": "sgd", "momentum": 0.5, "epochs": 3000},
        budget={"trials": 4},
        search={"sampler": "random", "batch": 4},
        resources={"workers": 1, "lanes": 4},
    )
    search = created(store, "digits", tmp_path, **spec)
    with Head(cpus=0, gpus=0) as head:
        node = head.join(cpus=1, gpus=0)
        with driven(head, store, search, tmp_path, checkpoint_every=0.2) as driver:
            until(search.checkpoints)
            node.kill()
            head.join(cpus=1, gpus=0)
            assert end_of(driver) == "complete"
    assert sorted(o.number for o in search.outcomes()) == list(range(4))
    (lost,) = [event.body["bundle"] for event in search.log() if event.kind == "failed"]
    starts = {place[0]: start_of(search._tables(place)) for place in search.attempts() if place[0] != lost}
    assert len(starts) == 2, "it is handed out in halves"
    assert all(start is not None and start.bundle_id == lost and start.step > 0 for start in starts.values())
    for report in search.reports_table(every_attempt=True).to_pylist():
        start = starts.get(report["bundle_id"])
        assert start is None or report["step"] > start.step


def test_where_there_is_no_node_a_driver_says_so_at_once():
    argv = [sys.executable, "-c", NO_NODE]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "no Ray node runs on this machine" in done.stdout, done.stderr
    assert "--num-cpus=0" in done.stdout
