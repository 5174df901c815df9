"""The connection to a Ray cluster: the one that RAY_ADDRESS names, else one of this process's own.

    >>> warm()                            # ahead of time: connected, and a controller's process ready
    >>> actor, ours = hired(2, 1, None)   # a `Host` in its process; whether the connection is ours to end

A slot's process cannot be had ahead of time: Tune's slots are actors, and Ray gives none that ran a task to an actor.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import AuthenticationError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_spaces.faults import Invalid
from service.executors.ray_cluster import NO_NODE, node_here
from service.executors.ray_host import CALLS, SEATS, Host
from service.progress import SearchFailed

UNFIT = "what the search's code requires cannot be set up on Ray: {error}"
Answer = TypeVar("Answer")
LOOK = 0.5  # seconds between looks whether an answer is still wanted
BUSY = 10.0  # seconds that a process that waited gets to answer
_SHARED = {"PL_DISABLE_FORK": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}  # what Tune sets: the same for all, so that processes
# that wait can be used for any of them
_waiting: list[Any] = []  # hosts without a controller
_given: dict[str, Any] = {}  # the environment that `there` connected with, and whoever hires next may use


def connect(cpus: int, runtime_env: Mapping[str, Any] | None = None) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, or start one in this process. Returns whether that was needed."""
    given = dict(runtime_env or {})
    if ray.is_initialized():
        if given and given == _given:
            return True
        if given:
            raise SearchFailed(
                "Ray is at work in this process already and cannot give another search its code; "
                "run each search in a process of its own."
            )
        return False
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {
            **given,
            "env_vars": {**given.get("env_vars", {}), **_SHARED},
        },
    }
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        ray.init(num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **options)
    else:
        _join(address, options)
    _given.clear()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a slot that died is replaced, and told of elsewhere
    return True


def warm() -> None:
    """Connect ahead of time and have a controller's process ready, for the first search here that brings no code and
    requires nothing. Raises what `connect` does."""
    connect(1)
    host = _host()
    ray.get(host.ready.remote())
    _waiting.append(host)


def hired(workers: int, cpus: float, runtime_env: Mapping[str, Any] | None) -> tuple[Any, bool]:
    """A host for a controller, and whether the connection is ours to end. Raises what `connect` does."""
    warmed = list(_waiting)
    _waiting.clear()
    if warmed:
        try:
            ray.get(warmed[0].ready.remote(), timeout=BUSY)
        except RayError as error:  # a process does not get well of that; another one may
            raise ConnectionError(f"the Ray cluster that was connected to is gone ({_first_line(error)})") from None
        if not runtime_env:
            return warmed[0], True
    if warmed or not ray.is_initialized():
        ray.shutdown()
    started = connect(math.ceil(workers * cpus), runtime_env)
    return _host(), started


def there(
    work: Callable[[], Answer], runtime_env: Mapping[str, Any], gpus: float, given_up: Callable[[], bool]
) -> Answer | None:
    """What `work` returns in a process of that environment; None when it was given up before.

    Raises:
        Invalid: as `work` does.
        SearchFailed: the environment cannot be set up.
        ConnectionError: what `connect` does, or the process was lost.
    """
    if _waiting or not ray.is_initialized():
        ray.shutdown()
    _waiting.clear()
    connect(1, runtime_env)
    try:
        process: Any = ray.remote(_answer)
        asked = process.options(num_cpus=0, num_gpus=gpus).remote(work)
        while not ray.wait([asked], timeout=LOOK)[0]:
            if given_up():
                ray.shutdown()
                return None
        answer: Answer | tuple[str, ...] = ray.get(asked)
    except BaseException as error:
        ray.shutdown()
        if isinstance(error, RuntimeEnvSetupError):
            raise SearchFailed(UNFIT.format(error=error)) from None
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            raise ConnectionError(f"the Ray cluster lost the process that prepared ({_first_line(error)})") from None
        raise
    if isinstance(answer, tuple):
        ray.shutdown()
        raise Invalid(answer)
    _given.clear()
    _given.update(runtime_env)
    return answer


def _answer(work: Callable[[], Answer]) -> Answer | tuple[str, ...]:
    try:
        return work()
    except Invalid as error:
        return tuple(error.faults)


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def _host() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": SEATS + CALLS, "scheduling_strategy": here}
    return ray.remote(Host).options(**options).remote()


def _join(address: str, options: Mapping[str, Any]) -> None:
    if not node_here() and _answers(address):  # else Ray would look for one for a minute
        raise ConnectionError(NO_NODE.format(address=address))
    try:
        with _patience(5):
            ray.init(address=address, **options)
    except (AuthenticationError, ConnectionError) as error:
        ray.shutdown()
        if isinstance(error, AuthenticationError) or "InvalidAuthToken" in f"{error.__cause__}":
            raise SearchFailed(
                f"the Ray cluster at RAY_ADDRESS={address} refuses us: its token is missing or another one; "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token."
            ) from None
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); "
            "start it, or unset RAY_ADDRESS to use this machine."
        ) from None


def _answers(address: str) -> bool:
    """Whether anything listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """How long Ray tries to reach a head, which is 20 seconds otherwise even where the answer is no."""
    name = "RAY_gcs_server_port_wait_time_s"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(seconds))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
