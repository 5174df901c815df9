"""A network's layers as a Python file has them: under one name a layer, or several that follow each other.

    >>> made(nn.Conv2d(3, 8, 3, padding=1))
    'nn.Conv2d(3, 8, 3, padding=1)'

Layers of one owner that do nothing but follow each other become an `nn.Sequential` of the owner's name.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from search_spaces.blocks import NODES
from search_spaces.faults import Invalid

WORDS = re.compile(r"\b(padding|padding_mode)=([a-z]+)")
SIDES = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")  # one number is all axes'
OWNER = re.compile(r"(?:(.*)\.)?edges\.([^.]+)")  # the path of an edge of a graph


@dataclass(frozen=True)
class Part:
    """What a network has under one name: a tensor of its own, a layer, or the layers at `paths` one after the other."""

    name: str
    paths: tuple[str, ...]
    nodes: tuple[fx.Node, ...]  # those that call the layers; of a layer that is called twice, the first


def parts_of(graph: fx.GraphModule) -> list[Part]:
    """All that a network uses, in the order of use."""
    called = Counter(node.target for node in graph.graph.nodes)
    chains: list[list[fx.Node]] = []
    seen: set[str] = set()
    for node in graph.graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target in seen:
            continue
        seen.add(node.target)
        if chains and called[node.target] == 1 and _follows(chains[-1][-1], node, called):
            chains[-1].append(node)
        else:
            chains.append([node])
    whole = Counter(_owner(path) for path in seen)
    owners = {found.group(1) for path in seen if (found := OWNER.match(_owner(path)))}
    parts: list[Part] = []
    for chain in chains:
        for nodes in [chain] if _reads_well(chain, whole) else [[node] for node in chain]:
            name = _name(nodes, whole, owners)
            while name in [part.name for part in parts] or hasattr(nn.Module, name):
                name += "_"
            parts.append(Part(name, tuple(str(node.target) for node in nodes), tuple(nodes)))
    return parts


def short(owner: str | None, name: str, owners: set[Any]) -> str:
    """The name of an edge or node of a graph, under its owner's where there are several."""
    return name if len(owners) == 1 or not owner else f"{owner.replace('.', '_')}_{name}"


def at(graph: fx.GraphModule, path: str) -> Any:
    """The layer or tensor at a path."""
    owner, _, name = path.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def _follows(before: fx.Node, node: fx.Node, called: Counter[Any]) -> bool:
    """Whether a layer reads the one before, which nothing else does."""
    both = before.op == node.op == "call_module" and called[before.target] == 1
    alone = node.args == (before,) and not node.kwargs and list(before.users) == [node] and before.next is node
    return both and alone and NODES not in before.meta and _owner(str(before.target)) == _owner(str(node.target))


def _reads_well(chain: Sequence[fx.Node], whole: Counter[str]) -> bool:
    """Whether layers lose no names of their own in a row: they are the owner's all, or were but numbered."""
    owner, numbered = _owner(str(chain[0].target)), all(str(node.target).rpartition(".")[2].isdigit() for node in chain)
    return len(chain) > 1 and (numbered or (owner != "" and whole[owner] == len(chain)))


def _name(nodes: Sequence[fx.Node], whole: Counter[str], owners: set[Any]) -> str:
    first, last = str(nodes[0].target), str(nodes[-1].target)
    owner = _owner(first)
    name = first
    if edge := OWNER.fullmatch(owner):
        name = short(edge.group(1), edge.group(2), owners)
        name = name if whole[owner] == len(nodes) else f"{name}_{first.rpartition('.')[2]}"
    elif len(nodes) > 1:
        ends = f"{first.rpartition('.')[2]}_to_{last.rpartition('.')[2]}"
        name = (owner or "layers") if whole[owner] == len(nodes) else f"{owner or 'layers'}_{ends}"
    name = name.replace(".", "_")
    return f"layer_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


# -- how they are made -------------------------------------------------------------------------------------------------


def lines(graph: fx.GraphModule, part: Part) -> list[str]:
    """The lines that make a part. Raises `Invalid` for a layer that is not torch's."""
    made_each = [_made_at(graph, path) for path in part.paths]
    if len(made_each) == 1:
        return [f"self.{part.name} = {made_each[0]}"]
    return [f"self.{part.name} = nn.Sequential(", *(f"    {text}," for text in made_each), ")"]


def state(graph: fx.GraphModule, part: Part) -> dict[str, Tensor]:
    """Its weights by the names that they have there."""
    found: dict[str, Tensor] = {}
    for i, path in enumerate(part.paths):
        target, name = at(graph, path), part.name if len(part.paths) == 1 else f"{part.name}.{i}"
        own = target.state_dict(prefix=f"{name}.") if isinstance(target, nn.Module) else {name: target}
        found |= {key: value.detach().clone().contiguous() for key, value in own.items()}
    return found


def _made_at(graph: fx.GraphModule, path: str) -> str:
    target = at(graph, path)
    size = ", ".join(map(str, getattr(target, "shape", ()))) or "()"
    if isinstance(target, nn.Parameter):
        return f"nn.Parameter(torch.zeros({size}))"
    if isinstance(target, Tensor):
        return f"nn.Buffer(torch.zeros({size}, dtype={target.dtype}))"
    if type(target).__module__.startswith("torch.nn.modules."):
        return made(target)
    raise Invalid([f"export: .py knows torch.nn's own layers, but `{path}` is a {type(target).__name__}; try .pt2."])


def made(layer: nn.Module) -> str:
    """The call that makes a layer of torch.nn: what its constructor takes is written unless it is what it takes anyway.

    A layer's own print leaves out what changes its outputs (`ceil_mode` of an average pool, say), so it serves only
    where a constructor's argument is not kept under its name.
    """
    taken = inspect.signature(type(layer)).parameters.values()
    try:
        given = {p.name: _argument(layer, p.name) for p in taken if p.name not in ("device", "dtype")}
    except AttributeError:
        return "nn." + WORDS.sub(r'\1="\2"', repr(layer))
    written = []
    for p in taken:
        if p.name in given and p.default is p.empty:
            written.append(repr(given[p.name]))
        elif p.name in given and given[p.name] != p.default:
            written.append(f"{p.name}={given[p.name]!r}".replace("'", '"'))
    return f"nn.{type(layer).__name__}({', '.join(written)})"


def _argument(layer: Any, name: str) -> Any:
    """What a constructor's argument was."""
    value = getattr(layer, name)
    if name == "bias" and not isinstance(value, bool):
        without_weights = not getattr(layer, "affine", getattr(layer, "elementwise_affine", True))
        return value is not None or without_weights
    one = isinstance(value, tuple) and len(set(value)) == 1 and (name in SIDES or len(value) == 1)
    return value[0] if one else value
