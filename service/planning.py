"""From the declaration to what runs: a spec and its task become a plan, a sampler, budgets, and their controller.

Importing this module loads no torch: on Ray the controller has a process of its own, which then starts in no time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from search_spaces import Space
from service.budgets import Budgets
from service.controller import Controller
from service.samplers import Sampler, make_sampler
from service.spec import SearchSpec
from trials.plan import Plan
from trials.store import Store
from trials.tasks import Task


def plan_of(spec: SearchSpec, task: Task | Callable[..., Any], way: str = "per_lane") -> Plan:
    """What every bundle of the search shares. The spec's `auto`s that depend on the task are filled in already; `way`
    is the measured one, for a spec that names none."""
    fused = isinstance(task, Task)
    return Plan(
        space=spec.space,
        training=spec.training,
        task=task if isinstance(task, Task) else None,
        network=spec.network if fused else None,
        objective=None if isinstance(task, Task) else task,
        method=spec.search.hypergradient,
        metric=spec.objective.metric,
        mode=spec.objective.mode,
        bounds={name: bound.max for name, bound in spec.constraints.items()},
        penalty=dict(spec.objective.penalty),
        seeds=spec.replicates.seeds,
        realise=spec.realise,
        way=spec.resources.way if spec.resources.way != "auto" else way,
        seed=spec.seed,
    )


def sampler_of(spec: SearchSpec, plan: Plan, space: Space | None = None) -> Sampler:
    """The sampler that the spec names, bounded by the plan; in a narrower `space` than its own where one is given."""
    chosen = spec.search.sampler
    options = {key: value for key, value in chosen.to_dict().items() if key != "kind"}
    return make_sampler(
        chosen.kind, space or spec.space, seed=spec.seed, mode=plan.mode, excess=plan.excess, options=options
    )


def device_of(spec: SearchSpec) -> str:
    """Where a worker trains."""
    import torch  # slow, and a spec is planned without it

    if not spec.resources.gpus_per_worker or not torch.cuda.is_available():
        return "cpu"
    # one rounding for every way of running lanes
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


def threads_of(spec: SearchSpec) -> int:
    """Threads that one worker's arithmetic runs on."""
    return max(1, int(spec.resources.cpus_per_worker))


def budgets_of(spec: SearchSpec) -> Budgets:
    """When the search is over."""
    return Budgets.of(spec.budget.to_dict())


def make_controller(
    root: str, search_id: str, epoch: int, spec: SearchSpec, plan: Plan, lanes: int, sampler: Sampler | None = None
) -> Controller:
    """The search's controller, replayed from its log; called where the controller is to live."""
    search = Store(root).search(search_id)
    return Controller(
        search,
        search.log_writer(epoch),
        plan,
        sampler or sampler_of(spec, plan),
        budgets=budgets_of(spec),
        batch=spec.batch_size(),
        lanes=lanes,
        narrow=None if sampler else partial(sampler_of, spec, plan),
    )
