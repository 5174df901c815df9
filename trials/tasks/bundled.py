"""The classic UCI tables that scikit-learn carries, so that they need no download.

    >>> load("uci/breast_cancer").inputs
    30

Columns are standardised as any table's are, except those of digits: its 64 pixels are well known as such, so they are
scaled by 1/16 to [0, 1] and the constant ones (corners that no digit touches) stay. `uci/digits-images` is the same as
images of one channel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from trials.tasks.encode import encode
from trials.tasks.splitting import DEFAULT_FRACTIONS, deal
from trials.tasks.table import Table
from trials.tasks.task import Task, assemble

#: name -> (function of sklearn.datasets, kind)
LOADERS = {
    "uci/breast_cancer": ("load_breast_cancer", "classification"),
    "uci/diabetes": ("load_diabetes", "regression"),
    "uci/digits": ("load_digits", "classification"),
    "uci/digits-images": ("load_digits", "classification"),
    "uci/iris": ("load_iris", "classification"),
    "uci/wine": ("load_wine", "classification"),
}


def load(name: str) -> Task:
    """One of `LOADERS`, in its default splits."""
    from sklearn import datasets  # takes a second: whoever asks for names alone shall not wait

    function, kind = LOADERS[name]
    options = {"scaled": False} if name == "uci/diabetes" else {}
    bunch: Any = getattr(datasets, function)(**options)
    classification = kind == "classification"
    y = bunch.target.astype(np.int64 if classification else np.float64)
    parts = deal(y if classification else np.zeros(len(y), np.int64), DEFAULT_FRACTIONS, seed=0)
    features = tuple(str(feature) for feature in bunch.feature_names)
    if function == "load_digits":
        x = bunch.data / 16.0
        notes = ["The 64 pixels are scaled by 1/16, not standardised; constant ones are kept."]
    else:
        columns = tuple(pa.array(column) for column in bunch.data.T)
        encoded, _ = encode(Table(names=features, columns=columns), range(len(columns)), parts["train"])
        x, features, notes = encoded.x, encoded.features, list(encoded.notes)
    task = assemble(
        name=name,
        kind=kind,
        x=x,
        y=y,
        parts=parts,
        features=features,
        classes=tuple(str(label) for label in bunch.target_names) if classification else (),
        notes=tuple(notes),
    )
    return replace(task, shape=(1, 8, 8), features=()) if name.endswith("-images") else task
