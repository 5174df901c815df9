"""The Python file of a traced network: plain torch.nn layers, made in `__init__`, called in `forward`.

>>> print(written(graph, "batch, 13"))
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from search_spaces.faults import Invalid

HEAD = '''"""A plain network: `load()` builds it with the weights in the .safetensors file beside this one.

It reads {dtype} numbers [{shape}].
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    def __init__(self):
        super().__init__()
'''

TAIL = '''

def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with its weights, in evaluation mode."""
    network = Network(){cast}
    network.load_state_dict(load_file(path))
    return network.eval()
'''

WORDS = re.compile(r"\b(padding|padding_mode)=([a-z]+)")
PREFIX = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
INFIX = {
    operator.add: "+",
    operator.iadd: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.imul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.pow: "**",
    operator.matmul: "@",
    operator.isub: "-",
    operator.itruediv: "/",
    operator.mod: "%",
    operator.gt: ">",
    operator.ge: ">=",
    operator.lt: "<",
    operator.le: "<=",
}


def written(graph: fx.GraphModule, shape: str) -> str:
    """The source of a file that rebuilds a traced network; `shape` says what it reads."""
    names, values = _names(graph), _values(graph)
    made = [f"        self.{names[path]} = {_made(graph, path)}\n" for path in names]
    known = {**{f"self.{path}": f"self.{name}" for path, name in names.items()}, **values}
    body = [f"        {line}\n" for line in _forward(graph, known)]
    inputs = ", ".join(values[node.name] for node in graph.graph.nodes if node.op == "placeholder")
    used = "".join(body)
    dtype = next((t.dtype for t in weights_of(graph).values() if t.is_floating_point()), torch.float32)
    head = HEAD.format(shape=shape, dtype=str(dtype).removeprefix("torch."))
    tail = TAIL.format(cast="" if dtype == torch.float32 else f".to({dtype})")
    if "functional." not in used:
        head = head.replace("from torch.nn import functional\n", "")
    if "torch." not in used + "".join(made) + tail:
        head = head.replace("import torch\n", "", 1)
    return head + "".join(made) + f"\n    def forward(self, {inputs}):\n" + used + tail


def weights_of(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Its weights under the names of that file."""
    names, found = _names(graph), {}
    for path, name in names.items():
        target = _at(graph, path)
        if isinstance(target, nn.Module):
            state = target.state_dict()
            found.update({f"{name}.{key}": value.detach().clone().contiguous() for key, value in state.items()})
        else:
            found[name] = target.detach().clone().contiguous()
    return found


def _names(graph: fx.GraphModule) -> dict[str, str]:
    """What each layer and each number of its own that the graph uses is called, by path, in the order of use."""
    found: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in found:
            name = node.target.replace(".", "_")
            name = f"layer_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name
            while name in found.values() or hasattr(nn.Module, name):
                name += "_"
            found[node.target] = name
    return found


def _values(graph: fx.GraphModule) -> dict[str, str]:
    """What each value of the forward pass is called: as torch.fx calls it, made readable."""
    found: dict[str, str] = {}
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in graph.graph.nodes:
        name = node.name.lstrip("_")
        name = f"h_{name}" if name[0].isdigit() else name
        if len(inputs) == 1:
            name = "x" if node is inputs[0] else name
        while name in found.values() or name in ("torch", "functional", "nn", "self"):
            name += "_"
        found[node.name] = name
    return found


def _at(graph: fx.GraphModule, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def _made(graph: fx.GraphModule, path: str) -> str:
    target = _at(graph, path)
    size = ", ".join(map(str, getattr(target, "shape", ()))) or "()"
    if isinstance(target, nn.Parameter):
        return f"nn.Parameter(torch.zeros({size}))"
    if isinstance(target, Tensor):
        return f"nn.Buffer(torch.zeros({size}, dtype={target.dtype}))"
    if type(target).__module__.startswith("torch.nn.modules."):
        return "nn." + WORDS.sub(r'\1="\2"', repr(target))  # torch's layers print as they are made, but for quotes
    raise Invalid([f"export: .py knows torch.nn's own layers, but `{path}` is a {type(target).__name__}; try .pt2."])


def _forward(graph: fx.GraphModule, names: dict[str, str]) -> list[str]:
    lines = []
    for node in graph.graph.nodes:
        if node.op == "output":
            lines.append(f"return {_text(node.args[0], names)}")
        elif node.op not in ("placeholder", "get_attr"):
            lines.append(f"{names[node.name]} = {_call(node, names)}")
    return lines


def _call(node: fx.Node, names: dict[str, str]) -> str:
    arguments = [_text(a, names) for a in node.args] + [f"{key}={_text(a, names)}" for key, a in node.kwargs.items()]
    if node.op == "call_module":
        return f"{names[f'self.{node.target}']}({', '.join(arguments)})"
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
    function: Any = node.target
    if function in PREFIX:
        return f"{PREFIX[function]}{arguments[0]}"
    if function in INFIX:
        return f"{arguments[0]} {INFIX[function]} {arguments[1]}"
    if function is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if function is getattr:
        return f"{arguments[0]}.{node.args[1]}"
    return f"{_named(function)}({', '.join(arguments)})"


def _named(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", str(function))
    for place, spelt in ((torch, "torch"), (functional, "functional")):
        if getattr(place, name, None) is function:
            return f"{spelt}.{name}"
    raise Invalid([f"export: .py knows torch's own functions, but the network calls {name}; try .pt2."])


def _text(value: Any, names: dict[str, str]) -> str:
    """A value as it is written."""
    if isinstance(value, fx.Node):
        return names[f"self.{value.target}" if value.op == "get_attr" else value.name]
    if isinstance(value, tuple | list):
        inner = ", ".join(_text(item, names) for item in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, slice):
        return f"slice({_text(value.start, names)}, {_text(value.stop, names)}, {_text(value.step, names)})"
    return repr(value)
