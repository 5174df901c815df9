"""The Python file of a traced network: plain torch.nn layers, made in `__init__`, called in `forward`.

>>> print(written(graph, "batch, 13"))
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from search_spaces.export_forward import Forward
from search_spaces.export_layers import Part, lines, parts_of, state
from search_spaces.export_words import graph_words, nodes_of

HEAD = '''"""A plain network: `load()` builds it with the weights in the .safetensors file beside this one.

It reads {dtype} numbers [{shape}].
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional


class Network(nn.Module):
'''

INIT = """    def __init__(self):
        super().__init__()
"""

TAIL = '''

def load(path=Path(__file__).with_suffix(".safetensors")):
    """The network with its weights, in evaluation mode."""
    network = Network(){cast}
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def written(graph: fx.GraphModule, shape: str) -> str:
    """The source of a file that rebuilds a traced network; `shape` says what it reads."""
    parts = parts_of(graph)
    forward = Forward(graph, parts)
    made = _indented(line for part in parts for line in lines(graph, part))
    body = f"\n    def forward(self, {forward.input}):\n" + _indented(forward.lines())
    dtype = next((t.dtype for t in _state(graph, parts).values() if t.is_floating_point()), torch.float32)
    head = HEAD.format(shape=shape, dtype=str(dtype).removeprefix("torch."))
    tail = TAIL.format(cast="" if dtype == torch.float32 else f".to({dtype})")
    if "functional." not in body:
        head = head.replace("from torch.nn import functional\n", "")
    if "torch." not in body + made + tail:
        head = head.replace("import torch\n", "", 1)
    return head + _described(graph) + INIT + made + body + tail


def weights_of(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Its weights under the names of that file."""
    return _state(graph, parts_of(graph))


def _state(graph: fx.GraphModule, parts: list[Part]) -> dict[str, Tensor]:
    return {key: value for part in parts for key, value in state(graph, part).items()}


def _indented(text: Iterable[str]) -> str:
    return "".join(f"        {line}\n" for line in text)


def _described(graph: fx.GraphModule) -> str:
    """A docstring that says in words what graph the network came of, where it came of one."""
    if not (found := nodes_of(graph)):
        return ""
    told = "".join(f"    {line}".rstrip() + "\n" for line in graph_words(found))
    return f'    """The graph that was found, each edge with its operations:\n\n{told}    """\n\n'
