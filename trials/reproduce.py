"""A trial trained once more, exactly as it was, for the sake of its weights: they are a function of its point and seed.

    >>> again = reproduce(plan, trial)
    >>> again.network(again.example).shape
    torch.Size([2, 10])

Of several replicates the first is kept. The network is plain: gates folded, channels pruned, at the whole sizes nearest
to those where the training ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.flow import Flow, Untraceable
from search_spaces.kept import roles_of
from search_spaces.materialise import masked, materialise
from search_spaces.network import Size
from search_spaces.width import Gate, HeldGate, gates_of
from trials.batches import Rows
from trials.fused import FusedRun
from trials.metrics import measure
from trials.plan import Plan
from trials.records import Bundle, Outcome, Trial
from trials.train import Trainer


@dataclass(frozen=True, kw_only=True, eq=False)
class Reproduced:
    """A trial's network, an input that it reads, the trial's outcome, measured anew, and what this network is worth:
    with several replicates, not their mean."""

    network: nn.Module
    example: Tensor
    outcome: Outcome
    value: float


def reproduce(plan: Plan, trial: Trial, device: torch.device | str = "cpu") -> Reproduced:
    """Train a trial of a fused search again and take its network."""
    assert plan.task is not None
    assert plan.network is not None
    run = FusedRun(
        plan,
        Bundle(search_id=trial.search_id, id="again", generation=0, trials=(trial,)),
        Trainer(plan, device).rows,
        torch.device(device),
    )
    outcome = next(record for record in run.records() if isinstance(record, Outcome))
    module = run.program.module(0).cpu().eval()
    whole = run.whole_points[0]
    example = torch.zeros(2, *plan.task.shape)
    network = plain_of(module, example, plan.network.whole_sizes(whole))
    rows = Rows.of(plan.task, plan.scored, dense=False, device=torch.device("cpu"))
    with torch.no_grad():
        logits_KOR = torch.cat([network(x).mT.unsqueeze(0) for x in rows.chunks()], 2)
    metrics = {name: float(v) for name, v in measure(plan.task.kind, logits_KOR, rows.y_R).items()}
    value = plan.worth(metrics, plan.network.named(plan.network.sizes(whole), whole=True))
    return Reproduced(network=network, example=example, outcome=outcome, value=value)


def plain_of(module: nn.Module, example: Tensor, sizes: Mapping[str, Size]) -> nn.Module:
    """The plain network of a lane's module at whole sizes, a run-time factor of its grades folded into its weights."""
    gates, roles = gates_of(module), roles_of(module)
    own = {name: _fitting(sizes[name], gate, roles[name]) for name, gate in gates.items()}
    try:
        flow = Flow(module, example)
    except Untraceable:
        return masked(module, own)
    factors = {
        name: float(gate.m.max())
        for name, gate in gates.items()
        if isinstance(gate, HeldGate) and roles[name] == "width"
    }
    with torch.no_grad():
        for use in {use.path: use for use in flow.uses if use.kind in ("linear", "conv")}.values():
            columns = [
                torch.full((segment.length,), factors.get(segment.group.root.gate or "", 1.0)) for segment in use.inputs
            ]
            weight = flow.graph.get_parameter(f"{use.path}.weight")
            column_I = torch.cat(columns).to(weight)
            weight.mul_(column_I.view(1, -1, *(1,) * (weight.dim() - 2)))
    return materialise(flow, own)


def _fitting(size: Size, gate: Gate, role: str) -> Size:
    """A whole size, but no more units or blocks than the lane was laid out for."""
    return min(size, gate.maximum) if isinstance(size, int) and role in ("width", "depth") else size
