"""Depths for an ordinary network: residual blocks that stand in a row become a real number of blocks.

    >>> gates = insert_depths(flow)        # {"depth.layer1": DepthGate of 3 blocks}: each block of `layer1` may go

A block may go when what it writes takes the place of what it reads: the same channels, which a sum ties, of a map of
the same side. Then h + m (block(h) - h) goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from search_spaces.blocks import Passing
from search_spaces.cell_flow import SUMS
from search_spaces.flow import Flow, shape_of
from search_spaces.width import DepthGate

Ends = tuple[fx.Node, fx.Node]  # what a block reads and what it writes


def insert_depths(flow: Flow, leave: Sequence[str] = (), membership: str = "interval") -> dict[str, DepthGate]:
    """Put a grade after every block that may go; in place. The gates by name, for the list that holds the blocks."""
    found: dict[str, DepthGate] = {}
    like = next(iter(flow.graph.parameters()))
    for path, blocks in _lists(flow, leave).items():
        gate = DepthGate(f"depth.{path}", len(blocks), membership=membership).to(like.device, like.dtype)
        found[gate.name] = gate
        passed: dict[fx.Node, fx.Node] = {}  # a block reads what goes on from the one before it
        for index, (before, after) in enumerate(blocks):
            passed[after] = _pass(flow, gate, index, passed.get(before, before), after)
    flow.graph.graph.lint()
    flow.graph.recompile()
    return found


def _lists(flow: Flow, leave: Sequence[str]) -> dict[str, list[Ends]]:
    """The blocks that may go, by the path of the list that they stand in, the outer ones where they are nested."""
    members = _members(flow)
    found: dict[str, list[Ends]] = {}
    taken: list[str] = []
    for block in members:
        owner, _, place = block.rpartition(".")
        inside = any(block.startswith(f"{outer}.") for outer in taken)
        left = any(block == path or block.startswith(f"{path}.") for path in leave)
        if not place.isdigit() or inside or left:
            continue
        ends = _ends(flow, members[block])
        if ends is not None:
            found.setdefault(owner or "blocks", []).append(ends)
            taken.append(block)
    return found


def _members(flow: Flow) -> dict[str, list[fx.Node]]:
    """The operations in the forward of each module, outer modules before the inner ones."""
    found: dict[str, list[fx.Node]] = {}
    for node in flow.graph.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            found.setdefault(str(path), []).append(node)
    return found


def _ends(flow: Flow, nodes: Sequence[fx.Node]) -> Ends | None:
    """What a block reads and writes, where it may go."""
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside and n.op != "get_attr")
    written = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(read) != 1 or len(written) != 1 or not any(node.target in SUMS for node in nodes):
        return None
    (before,), (after,) = read, written
    if shape_of(before) != shape_of(after) or list(_channels(flow, before)) != list(_channels(flow, after)):
        return None
    return before, after


def _channels(flow: Flow, node: fx.Node) -> Iterator[tuple[int, int]]:
    segments = flow.values[node].segments if node in flow.values else None
    return ((id(s.group.root), s.repeat) for s in segments or ())


def _pass(flow: Flow, gate: DepthGate, index: int, before: fx.Node, after: fx.Node) -> fx.Node:
    path = f"passing.{gate.name.replace('.', '_')}_{index}"
    flow.graph.add_submodule(path, Passing(gate, index))
    with flow.graph.graph.inserting_after(after):
        node = flow.graph.graph.call_module(path, (before, after))
    node.meta["tensor_meta"] = after.meta["tensor_meta"]
    after.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    return node
