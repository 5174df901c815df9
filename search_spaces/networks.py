"""Networks as declarations: what a spec's `network:` section says, which widths it gates, and its live sizes.

    >>> network = network_from_dict({"kind": "convnet", "layers": 3})
    >>> network.gates
    ('width.0', 'width.1', 'width.2')

    mlp              hidden layers of one task's rows (an image is a row of its pixels)
    convnet          convolutions of an image, halved between, then one average over all places
    residual         stages of residual blocks, of images or of rows; what a sum ties has one width
    cell             cells of one graph, stacked
    graphon          one graph whose edges are a smooth kernel
    fabric           a trellis of layers and scales
    module:attribute the user's own: a function that returns an nn.Module with gates (`search_spaces.width.WidthGate`)

No torch here: `search_spaces.realise` builds the modules and their costs.
"""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.faults import Invalid, unknown
from search_spaces.graph_networks import Cell, Fabric, Graphon
from search_spaces.layered import MLP, ConvNet, Residual
from search_spaces.network import Network
from search_spaces.own import Own

__all__ = [
    "MLP",
    "NETWORKS",
    "Cell",
    "ConvNet",
    "Fabric",
    "Graphon",
    "Network",
    "Own",
    "Residual",
    "network_from_dict",
]

NETWORKS: dict[str, type[Network]] = {cls.kind: cls for cls in (MLP, ConvNet, Residual, Cell, Graphon, Fabric)}


def network_from_dict(data: object) -> Network:
    """The network a spec's `network:` section declares. Raises `Invalid` with every fault."""
    if isinstance(data, str) and ":" in data:
        data = {"kind": data}
    known_kinds = [*NETWORKS, "module:attribute"]
    if not isinstance(data, Mapping) or "kind" not in data:
        raise Invalid([f"network: must be a mapping with a `kind` ({', '.join(known_kinds)}), but got {data!r}."])
    kind = data["kind"]
    own = isinstance(kind, str) and ":" in kind
    cls = Own if own else NETWORKS.get(str(kind))
    if cls is None:
        raise Invalid([unknown("network.kind", kind, known_kinds, "network")])
    known = cls.written()
    faults = [unknown("network", key, [*known, "kind"]) for key in data if key != "kind" and key not in known]
    given = {str(key): value for key, value in data.items() if key in known}
    network = cls(**given, **({"reference": kind} if own else {}))
    if faults := faults + network.faults():
        raise Invalid(faults)
    return network
