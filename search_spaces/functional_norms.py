"""`functional.layer_norm` as the module it stands for, so that what follows channels meets modules alone.

Subclasses of nn.LayerNorm that permute an image first (`LayerNorm2d` in timm and torchvision) are written so.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional


def as_modules(graph: fx.GraphModule) -> None:
    """Put an nn.LayerNorm, of the same parameters, in the place of each call with weights of an owner of their own."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not functional.layer_norm:
            continue
        given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), node.args, strict=False)) | node.kwargs
        path = _owner(given)
        if not path or len(given["normalized_shape"]) != 1:
            continue
        owner: Any = graph.get_submodule(path)
        if not isinstance(owner, nn.LayerNorm):
            new = nn.LayerNorm(
                tuple(given["normalized_shape"]), given.get("eps", 1e-5), bias=given.get("bias") is not None
            )
            if set(owner.state_dict()) != set(new.state_dict()):
                continue  # it owns more
            for name, parameter in owner.named_parameters():
                setattr(new, name, parameter)
            new.train(graph.training)
            graph.add_submodule(path, new)
        with graph.graph.inserting_after(node):
            call = graph.graph.call_module(path, (given["input"],))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        weights = node.all_input_nodes
        graph.graph.erase_node(node)
        for unused in weights:
            if unused.op == "get_attr" and not unused.users:
                graph.graph.erase_node(unused)
    graph.recompile()


def _owner(given: dict[str, Any]) -> str:
    """The path of the module whose weight (and bias) a call is given; empty where there is no such module."""
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return ""
    path, _, name = str(weight.target).rpartition(".")
    fits = bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.target == f"{path}.bias")
    return path if name == "weight" and fits else ""
