"""Small files of images, and what every test of images needs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_spaces import Invalid
from trials.tasks import load

DATA = Path(os.environ["CONTINUA_DATA"]) if os.environ.get("CONTINUA_DATA") else None
needs_images = pytest.mark.skipif(
    DATA is None or not (DATA / "mnist" / "train.parquet").is_file(),
    reason="CONTINUA_DATA does not name a directory with mnist/train.parquet",
)


def drawn(count: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    """Images of noise, [H, W] or [H, W, C]."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, shape or (6, 5), dtype=np.uint8) for _ in range(count)]


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write(
    path: Path,
    images: Sequence[np.ndarray | bytes | None],
    labels: Any = None,
    *,
    columns: tuple[str, str] = ("image", "label"),
    names: object = None,
    **options: Any,
) -> Path:
    """A file in the image-table convention; labels are 0, 1, 0, 1, ... unless told."""
    cells = [
        {"bytes": encoded(image) if isinstance(image, np.ndarray) else image, "path": f"{i}.png"}
        for i, image in enumerate(images)
    ]
    pictures = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    data = pa.Table.from_arrays(
        [pictures, pa.array(np.arange(len(images)) % 2 if labels is None else labels)], list(columns)
    )
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        data = data.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(data, path, **options)
    return path


def images(train: Path | str, **keys: object) -> dict[str, object]:
    return {"kind": "images", "train": str(train), **keys}


def faults(spec: Any, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(Invalid) as caught:
        load(spec, **keys)
    return caught.value.faults
