"""What is exported says what the relaxed network says at whole sizes, read back with none of our code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_cases import CASES
from export_cases import built as built_whole
from network_cases import ORDINARY
from torch import Tensor, nn

from search_spaces import Invalid
from search_spaces.continuous import make_continuous
from search_spaces.export import FORMATS, export, path_faults
from search_spaces.export_layers import made
from search_spaces.export_python import written
from search_spaces.flow import Flow, traced
from search_spaces.materialise import MaskedExport, masked, materialise, plain
from search_spaces.networks import MLP, ConvNet, Residual
from search_spaces.realise import module_of
from search_spaces.width import WidthGate, gates_of


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(12 * 16, 10), nn.GELU(), nn.Dropout(0.1), nn.Linear(10, 4)),
    )


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.norm_b = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.BatchNorm2d(inner)
        self.c, self.scale = nn.Conv2d(inner, width, 1), nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(self.norm_a(self.a(x)))
        return torch.relu(x + self.scale * self.c(torch.relu(self.norm_b(self.b(h)))))


def resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Bottleneck(8, 12), Bottleneck(8, 6)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


IMAGE = (3, 8, 8)


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A relaxed network at whole sizes with statistics of some data, and an input."""
    torch.manual_seed(0)
    example = torch.randn(2, *((5,) if name in ("mlp", "rows") else IMAGE))
    ours = {
        "mlp": MLP(layers=2, width=9),
        "rows": Residual(stages=1, width=8),
        "convnet": ConvNet(layers=2, width=8),
        "residual": Residual(stages=2, width=8),
    }
    if name in ours:
        network = ours[name]
        module = module_of(network, example.shape[1:], 4, {gate: network.default(gate) for gate in network.gates})
    else:
        module = make_continuous({"vgg": vgg, "resnet": resnet}[name](), example=example)[0]
    for gate, n in zip(gates_of(module).values(), (3, 5, 2, 6, 4, 7), strict=False):
        assert isinstance(gate, WidthGate)
        gate.set(min(n, gate.maximum))
    module.train()
    for _ in range(3):
        module(torch.randn(16, *example.shape[1:]))
    return module.eval(), example


NETWORKS = {
    "widths": ("mlp", "rows", "convnet", "residual", "vgg", "resnet"),
    "strides, depths and graphs": ("sliced", *CASES),
}
SLOW = (".pt2", ".onnx")  # formats in which the quick tier has few networks, and the long one one of each operation
FEW = {"widths": ("resnet",), "strides, depths and graphs": ("residual_shrink",)}
OPERATIONS = ("sliced", "residual_shrink", "convnet_spectral", "graphon_rows", "fabric_odd")


@pytest.mark.slow
@pytest.mark.parametrize("what", list(NETWORKS))
@pytest.mark.parametrize("suffix", list(FORMATS))
def test_read_back_it_is_the_relaxed_network(suffix: str, what: str, tmp_path: Path) -> None:
    read_back(suffix, FEW[what] if suffix in SLOW else NETWORKS[what], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("suffix", SLOW)
def test_every_operation_read_back_is_the_relaxed_network(suffix: str, tmp_path: Path) -> None:
    read_back(suffix, (*NETWORKS["widths"], *OPERATIONS), tmp_path)


def read_back(suffix: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Export each, and read it in a process of its own, where none of our packages can be imported."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    for name in names:
        if name in NETWORKS["widths"]:
            module, example = built(name)
            narrow = materialise(Flow(module, example))
        else:
            case = built_whole(name)
            module, example, narrow = case.relaxed, case.example, case.plain
        x = torch.randn(7, *example.shape[1:])
        assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in module.parameters())
        export(narrow, example, tmp_path / f"{name}{suffix}")
        torch.save({"x": x, "y": module(x).detach()}, tmp_path / f"{name}.pt")
    assert not list(tmp_path.glob(".export-*"))
    script = f"""
import sys, torch
for name in ("search_spaces", "trials", "service"):
    sys.modules[name] = None
for name in {names!r}:
    {READ[suffix]}
    truth = torch.load(f"{{name}}.pt")
    with torch.no_grad():
        torch.testing.assert_close(network(truth["x"]), truth["y"], rtol=1e-4, atol=1e-5)
    print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.stdout.split() == list(names), done.stderr


READ = {
    ".pt2": "network = torch.export.load(name + '.pt2').module()",
    ".py": "import importlib; network = importlib.import_module(name).load()",
    ".onnx": """import onnx.reference; evaluator = onnx.reference.ReferenceEvaluator(onnx.load(name + '.onnx'))
    network = lambda x: torch.from_numpy(evaluator.run(None, {'x': x.numpy()})[0])""",
}


class Everything(nn.Module):
    """Names that a file has of its own, bare numbers, operators, methods and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.torch, self.functional = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.network, self.add, self.lambda_ = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.weight, self.scale = nn.Parameter(torch.rand(5)), nn.Parameter(torch.tensor(0.3))
        self.shift = nn.Buffer(torch.rand(5))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        x = self.torch(self.x(input))
        y = torch.nn.functional.softmax(self.functional(x), dim=-1) + self.weight * input - self.shift
        y = self.lambda_(self.network(self.add(y) * self.scale)).clamp(min=-1.0) / 2
        y -= x[:, 1:2]
        return torch.cat([-y, (x**2).mean(1, keepdim=True), x[:, ::2] + 1.5], dim=1)


LAYERS = {
    "convolutions": (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.Conv2d(4, 4, 3, groups=2)),
    "norms": (
        *(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4, eps=1e-3), nn.BatchNorm2d(4, affine=False, momentum=None)),
        *(nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()),
        *(nn.LayerNorm(144, bias=False), nn.RMSNorm(144), nn.LayerNorm(144, elementwise_affine=False)),
    ),
    "activations": (
        *(nn.GELU(approximate="tanh"), nn.Hardtanh(-0.5, 0.5), nn.ELU(), nn.PReLU(), nn.Softplus(), nn.LeakyReLU(0.1)),
        *(nn.Dropout(0.2), nn.Softmax(dim=1), nn.Hardswish(), nn.Identity(), nn.Mish()),
    ),
    "pools": (
        *(nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.AvgPool2d(2, divisor_override=3)),
        *(nn.Upsample(size=(5, 7)), nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(), nn.Linear(3, 2)),
    ),
}


@pytest.mark.parametrize("name", [*ORDINARY, *LAYERS, "everything"])
def test_every_layer_that_we_know_is_written_as_plain_python(name: str, tmp_path: Path) -> None:
    """`export` itself compares what it reads back, in float32 and in float64."""
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        if name in ORDINARY:
            make, shape = ORDINARY[name]
            module, _ = make_continuous(make(), example=(2, *shape))
            module = plain(module.to(dtype), torch.zeros(2, *shape, dtype=dtype), dict.fromkeys(gates_of(module), 3))
        else:
            shape = (5,) if name == "everything" else IMAGE
            module = traced((Everything() if name == "everything" else nn.Sequential(*LAYERS[name])).to(dtype).eval())
        kind = str(dtype).removeprefix("torch.")
        export(module, torch.zeros(2, *shape, dtype=dtype), tmp_path / f"{kind}.py")
        assert f"It reads {kind} numbers [batch, " in (tmp_path / f"{kind}.py").read_text()


def test_onnx_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = path_faults(tmp_path / "best.onnx")
    assert "there is no onnx and no onnxscript; install continua[onnx], or write .pt2 or .py" in fault
    assert path_faults(tmp_path / "best.py") == []


@pytest.mark.slow
def test_the_exporter_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    module, example = built("mlp")
    export(materialise(Flow(module, example)), example, tmp_path / "best.onnx")
    assert capfd.readouterr() == ("", "")


def test_the_python_file_is_readable() -> None:
    module, example = built("mlp")
    text = written(materialise(Flow(module, example)), "batch, 5")
    assert "It reads float32 numbers [batch, 5]." in text
    assert "nn.Linear(5, 3)" in text
    assert "def forward(self, x):" in text
    assert "search_spaces" not in text


def test_a_graph_is_written_node_by_node() -> None:
    text = written(built_whole("graphon").plain, "batch, 3, 8, 8")
    edges = text.split("operations:\n\n")[1].split("\n\n")[0]
    assert [line.split() for line in edges.splitlines()] == [
        ["x0", "->", "x1", "skip"],
        ["x1", "->", "x2", "conv3,", "avg_pool"],
        ["x0", "->", "x3", "conv3"],
        ["x1", "->", "x4", "skip"],
        ["x2", "->", "x4", "conv3,", "skip"],
        ["x3", "->", "x4", "conv3"],
    ]
    assert forward_of(text)[:-4] == [
        "x0 = self.stem(x)",
        "x1 = x0",
        "x2 = (self.e12_conv3(x1) + self.e12_avg_pool(x1)) * 2**-0.5",
        "x3 = self.e03_conv3(x0)",
        "x4 = (x1 + self.e24_conv3(x2) + x2 + self.e34_conv3(x3)) * 4**-0.5",
    ]
    assert "self.e12_avg_pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)" in text


def forward_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("def forward(self, x):\n")[1].split("\n\n")[0].splitlines()]


def test_cells_and_fabrics_name_their_nodes() -> None:
    cells = written(built_whole("cell").plain, "batch, 3, 9, 7")
    assert "cells_0, cells_1:\n" in cells  # which are one graph, told once
    assert cells.count("x0 -> x2  separable") == 1
    assert "cells_1_x0 = self.transitions_0(cells_0_x3)" in forward_of(cells)
    fabric = forward_of(written(built_whole("fabric").plain, "batch, 3, 8, 8"))
    assert "l2s1 = (self.l1s0_l2s1_skip(l1s0) + l1s1) * 2**-0.5" in fabric
    assert "l2s0 = self.l1s1_l2s0_conv3(l1s1)" in fabric


def test_strides_are_written_as_one_writes_them() -> None:
    assert "h_3_strided = layers_0_to_2[:, :, ::3, ::3]" in written(built_whole("sliced").plain, "batch")
    assert "nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)" in written(
        built_whole("convnet_shrink").plain, "batch"
    )
    spectral = forward_of(written(built_whole("convnet_spectral").plain, "batch"))
    assert "features_1_resampled1 = features_0 @ self.features_1_resample1" in spectral


def test_what_changes_in_place_stays_where_it_is() -> None:
    """A term of a sum is not moved past an operation that changes what it reads."""
    plain = built_whole("graphon").plain
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    assert forward_of(written(plain, "batch"))[2:6] == [
        "e12_conv3 = self.e12_conv3(x0)",
        "cells_0_edges_e12_avg_pool_pool = self.e12_avg_pool(x0)",
        "add = e12_conv3 + cells_0_edges_e12_avg_pool_pool",
        "x2 = add * 0.7071067811865476",
    ]


def test_a_layer_is_made_as_it_was() -> None:
    for text in (
        "nn.Conv2d(3, 4, (3, 5), stride=2, padding=(1, 2), bias=False)",
        'nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")',
        "nn.AvgPool2d(3, stride=1, padding=1, ceil_mode=True, count_include_pad=False)",
        "nn.BatchNorm1d(4, affine=False)",
        "nn.LayerNorm((4, 4), bias=False)",
        "nn.Hardtanh(min_val=-0.5, max_val=0.5)",
        'nn.Upsample(size=(2, 3), mode="bilinear")',
        "nn.Sigmoid()",
    ):
        assert made(eval(text)) == text


def test_a_network_that_cannot_be_traced_is_exported_with_masks(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gate, self.b = nn.Linear(5, 8), WidthGate("first", 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(x.shape[1] // 5):  # torch.fx cannot count to what it does not know
                x = self.b(self.gate(torch.relu(self.a(x))))
            return x

    module = Counting()
    module.gate.set(3)
    with pytest.warns(MaskedExport, match="Counting cannot be traced, so it is exported with masks"):
        fixed = plain(module, torch.zeros(2, 5))
    with pytest.raises(Invalid, match=r"\.py needs a network that torch.fx can trace, but Counting is none; try .pt2"):
        export(fixed, torch.zeros(2, 5), tmp_path / "best.py")
    export(fixed, torch.zeros(2, 5), tmp_path / "best.pt2")
    x = torch.randn(6, 5)
    again = torch.export.load(tmp_path / "best.pt2").module()
    torch.testing.assert_close(again(x), module(x), rtol=1e-5, atol=1e-6)
    with pytest.warns(MaskedExport):
        narrower = masked(module, {"first": 1})
    assert not torch.allclose(narrower(x), module(x))


def test_paths_are_judged_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("mine")
    (tmp_path / "there.safetensors").write_text("mine")
    assert [fault.split(": ")[1].split(" exists")[0] for fault in path_faults(tmp_path / "there.py")] == [
        str(tmp_path / "there.py"),
        str(tmp_path / "there.safetensors"),
    ]
    (unknown,) = path_faults(tmp_path / "best.pt")
    assert "Did you mean '.pt2'?" in unknown
    (nowhere,) = path_faults(tmp_path / "no" / "best.pt2")
    assert "there is no" in nowhere
    module, example = built("mlp")
    with pytest.raises(Invalid):
        export(module, example, tmp_path / "there.py")
    assert (tmp_path / "there.py").read_text() == "mine"
    export(materialise(Flow(module, example)), example, tmp_path / "there.py", overwrite=True)
    assert "class Network" in (tmp_path / "there.py").read_text()


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    traced = torch.fx.symbolic_trace(Odd())
    with pytest.raises(Invalid, match=r"\.py knows torch's own functions"):
        export(traced, torch.zeros(2, 4), tmp_path / "best.py")
    assert list(tmp_path.iterdir()) == []
