"""Tasks: the data a trial is trained and measured on, as plain numpy. Neither torch nor pandas is needed.

>>> load("uci/digits").rows("train", "outer").x.shape
(1079, 64)
"""

from trials.tasks.catalogue import kind_of, known, load
from trials.tasks.task import SPLITS, Augment, Split, Task

__all__ = ["SPLITS", "Augment", "Split", "Task", "kind_of", "known", "load"]
