"""The house keeps its shape: who imports whom, what an import loads, how long a file is, and what a wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("search_spaces", "trials", "service")  # each may import those before it
CEILING = 500  # lines
#: where a library may be imported, and nowhere else in the packages
HOMES = {
    "ray": {"service/executors/ray_tune.py", "service/executors/ray_connection.py"},
    "optuna": {"service/samplers/tpe.py", "service/samplers/cmaes.py"},
    "duckdb": {"trials/query.py"},
}
#: the same, where a whole package is the home
PACKAGES = dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client"), "service/api/")
BARE = {  # what importing any module of a layer must not load
    "search_spaces": ("trials", "service", "pandas", "pyarrow", "sklearn"),
    "trials": ("service", "ray", "optuna", "redis", "fastapi", "pydantic"),
}
SERVICE_BARE = ("ray", "fastapi")  # nor any of `service`, but the home of each


def sources(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert found, layer
    return found


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it; also those named in `import_module("...")`."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: -node.level]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def imports_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(ast.parse(path.read_text()), path)}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# -- the scan sees what it should --------------------------------------------------------------------------------------


def test_the_scan_sees_every_kind_of_import():
    text = """
import a.b, c as d
from e import f
from . import g
from ..h import i
def later():
    import j
    importlib.import_module("k.l")
if TYPE_CHECKING:
    from m import n
"""
    found = set(imported(ast.parse(text), ROOT / "p" / "q" / "r.py"))
    assert {name.partition(".")[0] for name in found} == {"a", "c", "e", "p", "j", "k", "m"}
    assert {"p.q.g", "p.h", "p.h.i", "a.b", "k.l"} <= found


# -- imports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks", "examples"}
    wrong = {str(path.relative_to(ROOT)): names for path in sources(layer) if (names := imports_of(path) & above)}
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("library", PACKAGES)
def test_a_library_has_one_package(library):
    found = {str(p.relative_to(ROOT)) for layer in LAYERS for p in sources(layer) if library in imports_of(p)}
    assert found
    assert {name for name in found if not name.startswith(PACKAGES[library])} == set()


@pytest.mark.slow
@pytest.mark.parametrize("library", [*HOMES, "redis"])
def test_a_library_has_one_home(library):
    found = {str(p.relative_to(ROOT)) for layer in LAYERS for p in sources(layer) if library in imports_of(p)}
    if library in HOMES:
        assert found == HOMES[library]
    assert len(found) <= len(HOMES.get(library, {""}))
    assert all(name.startswith("service/") for name in found - {"trials/query.py"})


def loaded(modules: list[str]) -> dict[str, set[str]]:
    """What a fresh interpreter has loaded after each module, imported one after the other: top-level names."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, *sorted({m.partition('.')[0] for m in sys.modules}))\n"
    )
    argv = [sys.executable, "-c", script, *modules]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: set(names) for name, *names in map(str.split, done.stdout.splitlines())}


def test_declarations_load_no_torch():
    after = loaded(["search_spaces", "search_spaces.networks", "service.spec"])
    assert "numpy" in after["search_spaces"]
    assert not after["search_spaces"] & {"torch", *BARE["search_spaces"]}
    assert not after["search_spaces.networks"] & {"torch", *BARE["search_spaces"]}
    assert not after["service.spec"] & {"torch", "ray", "optuna", "sklearn"}


def test_a_controller_loads_nothing_heavy():
    """It asks and writes down; on Ray it has a process of its own, which thus starts in no time."""
    after = loaded(["service.controller", "service.executors.ray_host"])
    assert "numpy" in after["service.controller"]
    assert not after["service.executors.ray_host"] & {"torch", "scipy", "sklearn", "optuna", "pandas"}


@pytest.mark.parametrize("layer", BARE)
def test_no_module_of_a_layer_loads_what_its_machines_may_lack(layer):
    after = loaded([module_of(path) for path in sources(layer)])
    assert len(after) == len(sources(layer))
    wrong = {name: found for name, names in after.items() if (found := names & set(BARE[layer]))}
    assert wrong == {}


@pytest.mark.slow
def test_service_without_ray_loads_no_ray():
    homes = {home for library in SERVICE_BARE for home in HOMES.get(library, set())}
    names = [str(path.relative_to(ROOT)) for path in sources("service")]
    plain = [name for name in names if name not in homes and not name.startswith(PACKAGES["fastapi"])]
    after = loaded([module_of(ROOT / name) for name in plain])
    wrong = {name: found for name, names in after.items() if (found := names & set(SERVICE_BARE))}
    assert wrong == {}


def test_the_api_loads_nothing_that_runs_others_code():
    api = [module_of(path) for path in sources("service") if "api" in path.parts]
    after = loaded([*api, "service.submission", "service.access", "service.sandbox"])
    assert "fastapi" in after["service.api.app"]
    assert not after["service.sandbox"] & {"torch", "ray", "optuna", "sklearn", "duckdb", "safetensors"}


# -- files -------------------------------------------------------------------------------------------------------------


def every_file() -> list[Path]:
    places = [*LAYERS, "tests", "benchmarks", "examples", "deploy"]
    return sorted(path for place in places for path in (ROOT / place).rglob("*.py"))


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in every_file()}
    assert {name: length for name, length in lengths.items() if length > CEILING and name[:6] != "tests/"} == {}
    own = sorted(length for name, length in lengths.items() if not name.startswith("tests/"))
    assert own[len(own) // 2] <= 200, "half of the files have at most 200 lines"


def test_files_are_named_for_what_they_do():
    vague = ("util", "helper", "manager", "misc", "common")
    paths = [path.relative_to(ROOT) for path in every_file()]
    assert [str(path) for path in paths if any(word in part.lower() for word in vague for part in path.parts)] == []


def test_every_module_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in every_file()
        if (text := path.read_text()).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


def test_a_wheel_has_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for layer in LAYERS for path in sources(layer)}
    assert set(listed) == there
    assert len(listed) == len(there)
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in listed)
