"""Search spaces whose architecture is made of real numbers. Importing this package loads no torch."""

from search_spaces.faults import Invalid
from search_spaces.parameters import Choice, Depth, Float, Int, Parameter, Stride, Value, Width
from search_spaces.space import Point, Space
from search_spaces.wiring import Topology

__all__ = [
    "Choice",
    "Depth",
    "Float",
    "Int",
    "Invalid",
    "Parameter",
    "Point",
    "Space",
    "Stride",
    "Topology",
    "Value",
    "Width",
]
