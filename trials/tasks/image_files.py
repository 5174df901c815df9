"""Reading a Parquet file of images: its labels whole, and the pixels of chosen rows.

    >>> source, faults = read("task.train", Path("mnist/train.parquet"), image="image", label="label")
    >>> source.classes
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    >>> pixels, faults = decode(source, np.arange(100))
    >>> pixels.x.shape, pixels.shape
    ((100, 784), (1, 28, 28))

Rows are numbered from 0, as the file holds them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from PIL import Image, ImageOps

from search_spaces.faults import unknown

_BROKEN = (pa.ArrowException, OSError, UnicodeError)
_PIECE = 1024  # rows whose bytes are read at a time: a whole column may not fit
_AS = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}  # the mode an image has, and is read in
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A file, and each row's class as a code of `classes`. `image` is None where no images can be read, `codes` where
    no labels can; `names` are the classes' names where the file itself has them."""

    where: str
    path: Path
    rows: int
    image: str | None
    codes: np.ndarray | None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """Rows of images of one shape, uint8 [rows, C * H * W]."""

    x: np.ndarray
    shape: Shape


# -- labels ----------------------------------------------------------------------------------------------------------


def read(
    where: str, path: Path, *, image: str | None, label: str | None, names: tuple[str, ...] = ()
) -> tuple[Source | None, list[str]]:
    """The file's labels, and whether its columns are as they must be. `names` are those of the classes where the file
    has none; a column of None is not looked at."""
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            if rows == 0:
                return None, [f"{where}: needs rows of images, but {str(path)!r} has none."]
            image, faults = _image_column(where, schema, image)
            names = _names(schema, label) or names
            codes: np.ndarray | None = None
            classes: tuple[str, ...] = ()
            found = _column_faults("label", where, label, schema.names) if label else []
            if label and not found:
                codes, classes, found = _labels(where, label, file.read(columns=[label])[label], names)
    except _BROKEN as error:
        return None, [_unreadable(where, path, error)]
    source = Source(where=where, path=path, rows=rows, image=image, codes=codes, classes=classes, names=names)
    return source, faults + found


def _column_faults(key: str, where: str, column: str, columns: list[str]) -> list[str]:
    if column not in columns:
        return [unknown(f"task.{key}", column, columns, f"column of `{where[5:]}`")]
    if columns.count(column) > 1:
        return [f"task.{key}: {column!r} names more than one column of `{where[5:]}`; rename the others."]
    return []


def _image_column(where: str, schema: Any, image: str | None) -> tuple[str | None, list[str]]:
    if image is None:
        return None, []
    if faults := _column_faults("image", where, image, schema.names):
        return None, faults
    kind = schema.field(image).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
        return image, []
    rule = "must hold images as struct<bytes: binary, path: string>"
    return None, [f"task.image: {rule}, but {image!r} of `{where[5:]}` is of type {kind}; name another column."]


def _names(schema: Any, label: str | None) -> tuple[str, ...]:
    """The classes' names that the `datasets` library writes beside a table; () where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names) and len({*names}) == len(names)
    return tuple(names) if sound else ()


def _labels(
    where: str, label: str, column: Any, names: tuple[str, ...]
) -> tuple[np.ndarray | None, tuple[str, ...], list[str]]:
    """Codes, their classes, and faults."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    whole = pa.types.is_integer(kind)
    if not whole and not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        rule = f"must hold whole numbers or text, but {label!r} of `{where[5:]}` is of type {kind}"
        return None, (), [f"task.label: {rule}; name another column."]
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        rule = (
            f"every row needs a label, but {column.null_count} of {len(column)} rows have none, the first is row {row}"
        )
        return None, (), [f"{where}: {rule}; label or drop them."]
    if not whole:
        different, codes = np.unique(np.array(column.to_pylist(), dtype=object), return_inverse=True)
        return codes.astype(np.int64), tuple(different), []
    values = column.cast(pa.int64()).to_numpy()
    if not names:
        numbers, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), tuple(str(number) for number in numbers), []
    if (wrong := np.flatnonzero((values < 0) | (values >= len(names)))).size:
        rule = f"labels must be from 0 to {len(names) - 1}, for {len(names)} classes are named"
        row = int(wrong[0])
        return None, (), [f"{where}: {rule}, but row {row} has {values[row]}; label or drop {len(wrong)} such rows."]
    return values.astype(np.int64), names, []


# -- pixels ----------------------------------------------------------------------------------------------------------


def decode(source: Source, rows: np.ndarray, shape: Shape | None = None) -> tuple[Pixels | None, list[str]]:
    """The images of some rows, which are sorted; `shape` is what they must have, if not that of the first."""
    x: np.ndarray | None = None
    like = "as in `train`" if shape else ""
    broken: list[tuple[int, str]] = []
    other: list[tuple[int, str]] = []
    try:
        for i, (row, cell) in enumerate(_cells(source, rows)):
            try:
                image = picture(cell)
            except Exception as error:  # the readers of Pillow raise whatever the bytes provoke
                broken.append((row, " ".join(str(error).split())[:200]))
                continue
            if shape is None:
                shape, like = image.shape, f"as row {row} is"
            if image.shape != shape:
                other.append((row, _words(image.shape)))
                continue
            if x is None:
                x = np.empty((len(rows), image.size), np.uint8)
            x[i] = image.reshape(-1)
    except _BROKEN as error:
        return None, [_unreadable(source.where, source.path, error)]
    faults = []
    if broken:
        row, why = broken[0]
        faults.append(
            f"{source.where}: every row must hold an image, but row {row} does not: {why}; "
            f"mend or drop {_counted(broken, rows)}."
        )
    if other:
        row, what = other[0]
        faults.append(
            f"{source.where}: every image must be {_words(shape)} {like}, but row {row} is {what}; "  # type: ignore[arg-type]
            f"resize, convert or drop {_counted(other, rows)}."
        )
    if faults or x is None or shape is None:
        return None, faults
    return Pixels(x=x, shape=shape), []


def picture(cell: bytes | None) -> np.ndarray:
    """An image file's pixels, uint8 [C, H, W]. Raises what Pillow raises, or a `ValueError`."""
    if cell is None:
        raise ValueError("it has no bytes (a path alone is not followed)")
    with Image.open(io.BytesIO(cell)) as opened:
        image = ImageOps.exif_transpose(opened) if "exif" in opened.info else opened
        if image.mode == "P":  # numbers of colours are no quantities
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode not in _AS:
            raise ValueError(f"its mode is {image.mode}, but must be one of {', '.join(_AS)} or P: 8 bits a channel")
        pixels = np.asarray(image if image.mode == _AS[image.mode] else image.convert(_AS[image.mode]))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _cells(source: Source, rows: np.ndarray) -> Iterator[tuple[int, bytes | None]]:
    """Row numbers, and the bytes of their images."""
    begin = 0
    with pa.parquet.ParquetFile(source.path) as file:
        for piece in file.iter_batches(batch_size=_PIECE, columns=[source.image]):
            here = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, begin + len(piece))]
            column = piece.column(source.image)
            cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
            yield from ((int(row), cells[int(row) - begin].as_py()) for row in here)
            begin += len(piece)


def _counted(some: list[tuple[int, str]], rows: np.ndarray) -> str:
    return f"{len(some)} of {len(rows)} rows"


def _words(shape: Shape) -> str:
    channels, height, width = shape
    return f"{_MODES[channels]} of {height} x {width} (height x width)"


def _unreadable(where: str, path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{where}: {str(path)!r} cannot be read: {reason[:300]}"
