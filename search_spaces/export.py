"""A network on its way out: `.pt2`, ONNX, or a Python file that anyone can read, with its weights in safetensors.

    >>> export(materialise(flow), example, Path("best.py"))        # best.py and best.safetensors

    .pt2    torch.export's archive: `torch.export.load(path).module()(x)`
    .onnx   needs the extra `onnx`:  pip install 'continua[onnx]'
    .py     a class of plain torch.nn layers; `load()` in it fills them from the .safetensors beside it

Each reads batches of any size. Whatever is written is first read back and must say what the network said, and only then
takes its name: a file that stands there is whole and right.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import runpy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces.export_python import weights_of, written
from search_spaces.faults import Invalid, unknown

BATCHES = (2, 5)  # sizes at which what was written is compared
RELATIVE, ABSOLUTE = 1e-4, 1e-5  # how close it must be


def path_faults(path: Path, *, overwrite: bool = False) -> list[str]:
    """What keeps a network from being written to a path."""
    faults = []
    if path.suffix not in FORMATS:
        faults.append(unknown("export", path.suffix or path.name, FORMATS, "format, named by a file's ending,"))
    if not path.parent.is_dir():
        faults.append(f"export: must name a file in a directory that exists, but there is no {path.parent}; make it.")
    faults += [
        f"export: {place} exists already; name another file, or pass --overwrite (overwrite=True)."
        for place in _places(path)
        if place.exists() and not overwrite
    ]
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        faults.append(
            f"export: .onnx needs the packages of the extra `onnx`, but there is no {' and no '.join(missing)}; "
            "install continua[onnx], or write .pt2 or .py."
        )
    return faults


def export(module: nn.Module, example: Tensor, path: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a network, in evaluation mode, in the format that the path's ending names.

    Args:
        example: an input [B, ...]; any B may be read later.

    Returns:
        The files written.

    Raises:
        Invalid: for a path that is none, or a network that the format cannot hold.
    """
    if faults := path_faults(path, overwrite=overwrite):
        raise Invalid(faults)
    was_training, write = module.training, FORMATS[path.suffix]
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as place:
            draft = Path(place) / path.name
            again = _attempt(path, write, module.eval(), example, draft)
            _compare(path, module, example, again)
            written_files = [target for target in _places(path) if (draft.parent / target.name).exists()]
            for target in reversed(written_files):  # what reads the weights comes last
                os.replace(draft.parent / target.name, target)
    finally:
        module.train(was_training)
    return written_files


def _places(path: Path) -> list[Path]:
    return [path, path.with_suffix(".safetensors")] if path.suffix == ".py" else [path]


def _attempt(path: Path, write: Write, module: nn.Module, example: Tensor, draft: Path) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporters' own, of what they will change some day
            return write(module, example, draft)
    except Invalid:
        raise
    except Exception as error:  # the exporters raise anything
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        others = " or ".join(suffix for suffix in FORMATS if suffix != path.suffix)
        raise Invalid([f"export: {path.suffix} cannot hold this network ({problem}); try {others}."]) from error


def _compare(path: Path, module: nn.Module, example: Tensor, again: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in BATCHES:
        x = torch.randn(rows, *example.shape[1:], generator=generator).to(example)
        with torch.no_grad():
            got, wanted = again(x), module(x)
        if got.shape != wanted.shape or not torch.allclose(got, wanted, RELATIVE, ABSOLUTE):
            raise Invalid([f"export: what {path.suffix} read back must say what the network says, but differs."])


# -- formats -----------------------------------------------------------------------------------------------------------

Write = Callable[[nn.Module, Tensor, Path], Callable[[Tensor], Tensor]]


def _pt2(module: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(module, (example,), dynamic_shapes=_any_batch(module))
    torch.export.save(program, path)
    found: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return found


def _onnx(module: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    with _silence():
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=["x"],
            output_names=["y"],
            dynamo=True,
            dynamic_shapes=_any_batch(module),
            external_data=False,
            verbose=False,
        )
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(onnx.load(path))
    return lambda x: torch.from_numpy(evaluator.run(None, {"x": x.numpy()})[0])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter logs which packages that nobody asked for are not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _any_batch(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return ({0: torch.export.Dim("batch", min=1, max=1 << 20)},)


def _python(module: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    if not isinstance(module, fx.GraphModule):
        raise Invalid(
            [f"export: .py needs a network that torch.fx can trace, but {type(module).__name__} is none; try .pt2."]
        )
    from safetensors.torch import save_file

    path.write_text(written(module, _shape(example.shape)))
    save_file(weights_of(module), path.with_suffix(".safetensors"))
    found: nn.Module = runpy.run_path(str(path))["load"]()
    return found


def _shape(shape: Sequence[int]) -> str:
    return ", ".join(["batch", *map(str, shape[1:])])


FORMATS: dict[str, Write] = {".pt2": _pt2, ".onnx": _onnx, ".py": _python}
