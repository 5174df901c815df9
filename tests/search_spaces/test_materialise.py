"""What becomes of a relaxed network at whole sizes: who is kept, in which mode, of which kind, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from network_cases import IMAGE, ORDINARY, OUTPUTS
from torch import Tensor, fx, nn

from search_spaces import Invalid
from search_spaces.continuous import make_continuous
from search_spaces.flow import Flow
from search_spaces.kept import members, sizes_of, whole
from search_spaces.materialise import narrowed, plain, pruned
from search_spaces.membership import MEMBERSHIPS
from search_spaces.norms import MaskedLayerNorm, MaskedNorm, MaskedRMSNorm
from search_spaces.width import Gate, HeldGate, WidthGate, gates_of

N = 8


class Gated(nn.Module):
    """A linear layer, a gate, and a head; in float64."""

    def __init__(self, membership: str = "interval") -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, N), nn.Linear(N, OUTPUTS)
        self.gate = WidthGate("width", N, membership=membership)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.gate(torch.tanh(self.a(x))))
        return out


EXAMPLE = torch.zeros(2, 5, dtype=torch.float64)


# -- who is kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "size"), [(0.2, 1), (1.49, 1), (1.5, 2), (2.5, 3), (7.49, 7), (7.5, 8), (8.0, 8), (9.9, 8)]
)
def test_the_nearest_whole_size(n: float, size: int) -> None:
    assert whole(n, N) == size


def test_the_surest_members_are_kept_in_their_order_and_the_first_among_equals() -> None:
    gate = HeldGate("width", 6)
    gate.m = torch.tensor([0.2, 1.0, 0.0, 0.7, 1.0, 0.2])
    kept = [members(gate, size).tolist() for size in range(1, 7)]
    assert kept == [[1], [1, 4], [1, 3, 4], [0, 1, 3, 4], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("kind", list(MEMBERSHIPS))
def test_every_membership_keeps_as_many_units_as_its_size(kind: str) -> None:
    """Those of the greatest grades without noise, however often it is asked and in whichever mode."""
    module = Gated(kind)
    module.gate.set(4.3)
    for key, parameter in module.gate.named_parameters():
        if key != "n":
            parameter.data += torch.randn_like(parameter)
    size = sizes_of(module)["width"]
    assert size == max(1, min(N, int(float(module.gate.size().detach()) + 0.5)))
    grades = module.eval().gate.grades().detach()
    wanted = sorted(sorted(range(N), key=lambda k: (-float(grades[k]), k))[:size])
    for training in (True, False):
        module.train(training)
        for seed in range(3):
            torch.manual_seed(seed)
            narrow = plain(module, EXAMPLE)
            assert torch.equal(narrow.get_parameter("a.weight"), module.a.weight[wanted])
            assert torch.equal(narrow.get_parameter("b.weight"), module.b.weight[:, wanted])
        assert module.training is module.gate.training is training


def test_the_size_may_be_given() -> None:
    module = Gated()
    assert plain(module, EXAMPLE, {"width": 3}).get_parameter("a.weight").shape == (3, 5)
    assert gates_of(module)["width"].n == N  # the relaxed one stays


# -- what it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ORDINARY))
def test_no_trace_of_us_is_left(name: str) -> None:
    make, shape = ORDINARY[name]
    module, _ = make_continuous(make().double(), example=(2, *shape))
    narrow = plain(module, torch.zeros(2, *shape, dtype=torch.float64), dict.fromkeys(gates_of(module), 2))
    assert isinstance(narrow, fx.GraphModule)
    own = [type(child) for child in narrow.modules() if child is not narrow]
    assert all(cls.__module__.startswith("torch.nn.modules") for cls in own), own
    paths = {*narrow.state_dict(), *dict(narrow.named_modules())} - {"se.gate"}
    assert not any("gate" in path for path in paths)
    assert {tensor.dtype for tensor in narrow.parameters()} == {torch.float64}


@pytest.mark.parametrize("training", [True, False])
def test_it_is_in_the_mode_of_the_relaxed_network(training: bool) -> None:
    make, shape = ORDINARY["vgg"]
    module, _ = make_continuous(make(), example=(2, *shape))
    narrow = plain(module.train(training), torch.zeros(2, *shape))
    assert {child.training for child in narrow.modules()} == {training}


def test_layers_keep_all_that_they_are_made_of() -> None:
    """Stride, padding and its mode, dilation, bias or none, momentum and eps of norms."""

    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), padding_mode="reflect")
            self.norm = nn.BatchNorm2d(8, eps=0.1, momentum=None)
            self.b = nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False)
            self.c, self.head = nn.Conv2d(8, 6, 1, bias=False), nn.Linear(6, OUTPUTS, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
            out: Tensor = self.head(torch.relu(self.c(x)).mean((2, 3)))
            return out

    module, _ = make_continuous(Options(), example=(2, 3, 9, 12))
    narrow = plain(module, torch.zeros(2, 3, 9, 12), {"width.a": 3, "width.c": 2})
    shown = str(narrow)
    assert "(3, 3, kernel_size=(3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), padding_mode=reflect)" in shown
    assert "(3, 3, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=3, bias=False)" in shown
    norm = narrow.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.num_features, norm.eps, norm.momentum) == (3, 0.1, None)
    assert "Linear(in_features=2, out_features=4, bias=False)" in shown


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["layer", "layer without bias", "group", "rms"])
def test_a_masked_norm_is_the_plain_norm_of_its_members(kind: str, affine: bool) -> None:
    gate = WidthGate("width", N).double()
    options = {"bias": kind != "layer without bias", "affine": affine}
    norm: MaskedNorm
    if kind == "rms":
        norm = MaskedRMSNorm(N, gate, eps=None, affine=affine)
    else:
        norm = MaskedLayerNorm(N, gate, **options, **({"dim": 1, "spatial": True} if kind == "group" else {}))
    norm.double()
    for parameter in norm.parameters():
        parameter.data = torch.rand_like(parameter) + 0.5
    x = torch.randn(3, N, 5, dtype=torch.float64) if kind == "group" else torch.randn(3, 5, N, dtype=torch.float64)
    for n in (1, 3, N):
        gate.set(n)
        narrow = norm.plain(n).double()
        state = {key: value[:n] for key, value in norm.state_dict().items() if "gate" not in key}
        narrow.load_state_dict(state)  # strict: it has these and no others
        part = x[:, :n] if kind == "group" else x[..., :n]
        whole_out = norm(x)
        got = whole_out[:, :n] if kind == "group" else whole_out[..., :n]
        torch.testing.assert_close(got, narrow(part), rtol=1e-11, atol=1e-12)


def test_narrowed_is_pruned_with_its_gates() -> None:
    make, shape = ORDINARY["dense_layers"]
    module, _ = make_continuous(make().double(), example=(2, *shape))
    x = torch.randn(4, *shape, dtype=torch.float64)
    flow = Flow(module.eval(), x)
    kept = {"width.stem": [0, 2, 5], "width.convs.0": [1], "width.convs.1": [0, 3], "width.transition": [2, 4, 6]}
    units = {name: torch.tensor(found) for name, found in kept.items()}
    narrow, bare = narrowed(flow, units), pruned(flow, units)
    gates = gates_of(narrow)
    assert {name: gate.maximum for name, gate in gates.items()} == {name: len(found) for name, found in kept.items()}
    torch.testing.assert_close(narrow(x), bare(x), rtol=1e-12, atol=1e-13)
    for name, gate in gates.items():  # each gate is still asked wherever it was
        assert isinstance(gate, HeldGate)
        gate.m = torch.zeros(gate.maximum)
        assert not torch.allclose(narrow(x), bare(x)), name
        gate.m = torch.ones(gate.maximum)


def test_a_materialised_network_can_be_searched_again() -> None:
    make, shape = ORDINARY["resnet"]
    module, space = make_continuous(make().double(), example=(2, *shape))
    x = torch.randn(4, *shape, dtype=torch.float64)
    narrow = plain(module.eval(), x, dict.fromkeys(space.parameters, 5))
    again, smaller = make_continuous(copy.deepcopy(narrow), example=x)
    assert list(smaller.parameters) == list(space.parameters)
    torch.testing.assert_close(again(x), narrow(x), rtol=1e-12, atol=1e-13)
    assert not any(isinstance(child, Gate) for child in plain(again, x).modules())


# -- what is refused ---------------------------------------------------------------------------------------------------


class Fast(nn.Module):
    """Its code says how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.conv(x)).view(-1, 144))
        return out


def test_a_number_of_channels_in_the_code_is_refused_with_the_way_out() -> None:
    module, space = make_continuous(Fast(), example=(2, *IMAGE))
    assert list(space.parameters) == ["width.conv"]
    with pytest.raises(Invalid, match=r"must not hold a number of channels fast .* write `x.flatten\(1\)`"):
        plain(module, torch.zeros(2, *IMAGE), {"width.conv": 2})
