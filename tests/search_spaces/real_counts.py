"""What a plain network really costs: counted while it runs."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def flops_of(module: nn.Module, example: Tensor) -> tuple[int, int]:
    """Of the forward pass and of both passes, for the whole example, by torch's count."""
    with FlopCounterMode(display=False) as counter:
        out = module(example)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    return forward, forward + counter.get_total_flops()


def written_by(graph: fx.GraphModule, example: Tensor) -> int:
    """Bytes of one example's results: every one in memory of its own, and those that are written in place."""
    written = []

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            out = super().run_node(n)
            if n.op in ("call_module", "call_function", "call_method") and isinstance(out, Tensor):
                storage = out.untyped_storage().data_ptr()
                read = [self.env[source] for source in n.all_input_nodes if isinstance(self.env[source], Tensor)]
                view = any(value.untyped_storage().data_ptr() == storage for value in read)
                if not view or n.target is operator.iadd or getattr(self.module_of(n), "inplace", False):
                    written.append(4 * out[0].numel())
            return out

        def module_of(self, n: fx.Node) -> nn.Module | None:
            return graph.get_submodule(str(n.target)) if n.op == "call_module" else None

    mode = graph.training
    Counting(graph.eval(), garbage_collect_values=False).run(example)
    graph.train(mode)
    return sum(written)
