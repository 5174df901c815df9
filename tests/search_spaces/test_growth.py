"""Growth: what stays to the last bit, what keeps the output, and GradMax's gradient against autograd.

Legend of shape suffixes: N units, B batch, D inputs, O outputs, W numbers of a unit's outgoing weights, C numbers that
a unit reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.growth import GROWTHS, SLOPELESS, Units, Window, gradient_matrix, grown
from search_spaces.network import GROWTHS as DECLARED

N, BATCH, OUTPUTS = 6, 8, 3
LIVING = torch.tensor([True, True, True, False, False, False])
NEW = torch.tensor([False, False, False, True, True, False])
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": functional.gelu, "silu": functional.silu}
SLOPES = {"tanh": 1.0, "gelu": 0.5, "silu": 0.5}  # at 0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(seed: int = 0) -> Tensor:
    return torch.rand(N, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Network:
    """A function of (weights of the gate's units, grades, x); everything else about it is fixed."""

    activation: str = "tanh"

    def units(self, seed: int = 0) -> Units:
        raise NotImplementedError

    def x(self) -> Tensor:
        raise NotImplementedError

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        """What each reader writes."""
        raise NotImplementedError

    def loss(self, outs: Sequence[Tensor]) -> Tensor:
        """A loss that is not linear in what readers write."""
        return sum((torch.tanh(o) - normal(*o.shape, seed=50 + i)).square().mean() for i, o in enumerate(outs))

    def matrix(self, units: Units, m_N: Tensor) -> Tensor:
        """GradMax's, by its definition from x and dL/d(outs)."""
        x = self.x()
        outs = [out.detach().requires_grad_() for out in self.read(units, m_N, x)]
        deltas = torch.autograd.grad(self.loss(outs), outs)
        return self.from_deltas(x, deltas)

    def from_deltas(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError


class Dense(Network):
    """A linear layer that two linear layers read."""

    def units(self, seed: int = 0) -> Units:
        a, b, v, w = normal(N, 5, seed=seed), normal(N, seed=seed + 1), normal(OUTPUTS, N, seed=seed + 2), normal(4, N)
        return Units(incoming=(a, b), outgoing=(v, w))

    def x(self) -> Tensor:
        return normal(BATCH, 5, seed=9)

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        h = ACTIVATIONS[self.activation](x @ units.incoming[0].T + units.incoming[1]) * m_N
        return [h @ w.T for w in units.outgoing]

    def from_deltas(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        return torch.cat([gradient_matrix(x, delta, bias=True) for delta in deltas])


class Convolutional(Network):
    """A strided convolution, an average pooling, and a padded, dilated, strided convolution that leaves a rest."""

    def units(self, seed: int = 0) -> Units:
        a, b, w = normal(N, 2, 3, 3, seed=seed), normal(N, seed=seed + 1), normal(OUTPUTS, N, 3, 2, seed=seed + 2)
        return Units(incoming=(a, b), outgoing=(w,))

    def x(self) -> Tensor:
        return normal(4, 2, 17, 15, seed=9)

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        h = functional.conv2d(x, *units.incoming, stride=(1, 2), padding=(1, 0))
        h = functional.avg_pool2d(ACTIVATIONS[self.activation](h), 2) * m_N[:, None, None]
        return [functional.conv2d(h, units.outgoing[0], stride=(2, 1), padding=1, dilation=(1, 2))]

    def from_deltas(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        return gradient_matrix(
            x,
            deltas[0],
            writer=Window(kernel=(3, 3), stride=(1, 2), padding=(1, 0)),
            reader=Window(kernel=(3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
            bias=True,
            between=lambda read: functional.avg_pool2d(read, 2),
        )


class Headed(Network):
    """A convolution without a bias, its average over all places, and a linear layer."""

    def units(self, seed: int = 0) -> Units:
        return Units(incoming=(normal(N, 2, 3, 3, seed=seed),), outgoing=(normal(OUTPUTS, N, seed=seed + 2),))

    def x(self) -> Tensor:
        return normal(4, 2, 7, 7, seed=9)

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        h = ACTIVATIONS[self.activation](functional.conv2d(x, units.incoming[0])).mean((2, 3))
        return [(h * m_N) @ units.outgoing[0].T]

    def from_deltas(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        return gradient_matrix(x, deltas[0], writer=Window(kernel=(3, 3)), between=lambda read: read.mean((2, 3)))


class Stream(Network):
    """A residual stream: two linear layers add up to the units, the first with a bias; one layer reads them."""

    def units(self, seed: int = 0) -> Units:
        a, b, c = normal(N, 5, seed=seed), normal(N, seed=seed + 1), normal(N, 4, seed=seed + 3)
        return Units(incoming=(a, b, c), outgoing=(normal(OUTPUTS, N, seed=seed + 2),))

    def x(self) -> Tensor:
        return normal(BATCH, 9, seed=9)

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        a, b, c = units.incoming
        return [(ACTIVATIONS[self.activation](x[:, :5] @ a.T + b + x[:, 5:] @ c.T) * m_N) @ units.outgoing[0].T]

    def from_deltas(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        first, second = gradient_matrix(x[:, :5], deltas[0], bias=True), gradient_matrix(x[:, 5:], deltas[0])
        return torch.cat([first, second], 1)


class Normed(Dense):
    """A linear layer, a batch norm, and a reader; statistics of the batch."""

    def units(self, seed: int = 0) -> Units:
        scale, shift = 1 + 0.1 * normal(N, seed=seed + 7), 0.1 * normal(N, seed=seed + 8) * (seed == 0)
        return replace(super().units(seed), norms=(scale, shift))  # at first, the shift is 0

    def read(self, units: Units, m_N: Tensor, x: Tensor) -> list[Tensor]:
        z = functional.batch_norm(x @ units.incoming[0].T + units.incoming[1], None, None, *units.norms, training=True)
        return [(ACTIVATIONS[self.activation](z) * m_N) @ w.T for w in units.outgoing]


NETWORKS = [Dense, Convolutional, Headed, Stream, Normed]
PLAIN = [Dense, Convolutional, Headed, Stream]


def grades(new: float = 0.0) -> Tensor:
    return torch.tensor([1.0, 0.7, 1.0, new, new, 0.0], dtype=torch.float64)


def grow(kind: str, network: Network, **options: object) -> tuple[Units, Units, Units]:
    """Weights, initial weights, and the weights after growth."""
    units, initial = network.units(0), network.units(100)
    needs = {"living_N": LIVING, "new_N": NEW}
    needs |= {"matrix_WC": network.matrix(units, grades())} if kind == "gradmax" else {}
    needs |= {"uniform_N2": uniforms(), "grades_N": grades(1.0)} if kind == "net2net" else {}
    return units, initial, grown(kind, units, initial, **{**needs, **options})  # type: ignore[arg-type]


def tensors(units: Units) -> list[Tensor]:
    """All weights, units first."""
    return [*units.incoming, *(w.transpose(0, 1) for w in units.outgoing), *units.norms]


def difference(network: Network, a: Units, m: Tensor, b: Units, n: Tensor) -> float:
    x = network.x()
    return max(float((u - v).abs().max()) for u, v in zip(network.read(a, m, x), network.read(b, n, x), strict=True))


# -- what stays --------------------------------------------------------------------------------------------------------


def test_kinds_are_those_that_can_be_declared() -> None:
    assert tuple(GROWTHS) == DECLARED
    assert set(SLOPELESS) == set(ACTIVATIONS) - set(SLOPES)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", GROWTHS)
def test_units_that_are_not_new_stay_to_the_last_bit(kind: str, network: type[Network]) -> None:
    """And nothing is changed in place. net2net halves, more or less, the outgoing weights of those that it copies."""
    before = [t.clone() for t in tensors(network().units(0))]
    units, _, after = grow(kind, network())
    assert all(map(torch.equal, before, tensors(units)))
    for old, now in zip(tensors(units), tensors(after), strict=True):
        assert old.shape == now.shape
        assert torch.equal(old[5], now[5])
    for i, (old, now) in enumerate(zip(tensors(units), tensors(after), strict=True)):
        is_outgoing = len(units.incoming) <= i < len(units.incoming) + len(units.outgoing)
        if kind != "net2net" or not is_outgoing:
            assert torch.equal(old[~NEW], now[~NEW])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "share"), [("fresh", 1.0), ("zero", 0.0), ("scaled", 0.1)])
def test_new_units_begin_with_initial_weights_and_a_share_of_the_outgoing_ones(
    kind: str, share: float, network: type[Network]
) -> None:
    _, initial, after = grow(kind, network())
    for start, now in zip((*initial.incoming, *initial.norms), (*after.incoming, *after.norms), strict=True):
        assert torch.equal(start[NEW], now[NEW])
    for start, now in zip(initial.outgoing, after.outgoing, strict=True):
        assert torch.equal(share * start[:, NEW], now[:, NEW])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grade", [0.01, 0.4, 1.0])
def test_zero_and_gradmax_keep_the_output_at_every_grade(grade: float, network: type[Network], activation: str) -> None:
    for kind in ("zero", "gradmax"):
        units, _, after = grow(kind, network(activation))
        assert difference(network(activation), units, grades(), after, grades(grade)) < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grade", [0.01, 0.4, 1.0])
def test_net2net_keeps_the_output_at_the_grades_it_is_given(
    grade: float, network: type[Network], activation: str
) -> None:
    units, _, after = grow("net2net", network(activation), grades_N=grades(grade))
    assert difference(network(activation), units, grades(), after, grades(grade)) < 1e-12
    other = 0.5 if grade == 1 else 1.0
    assert difference(network(activation), units, grades(), after, grades(other)) > 1e-3


@pytest.mark.parametrize("network", NETWORKS)
def test_a_tenth_of_the_weights_does_a_tenth_of_the_harm(network: type[Network]) -> None:
    units, _, fresh = grow("fresh", network())
    _, _, scaled = grow("scaled", network())
    harm = difference(network(), units, grades(), fresh, grades(1.0))
    assert harm > 1e-2
    assert difference(network(), units, grades(), scaled, grades(1.0)) == pytest.approx(0.1 * harm, rel=1e-12)


# -- net2net -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_copies_share_what_their_parent_said(seed: int) -> None:
    """Rows are copies of a living unit's; with grades of 1 the columns of a family sum to its parent's, each a true
    share, and not an even one, or the family would stay alike."""
    units, _, after = grow("net2net", Dense(), uniform_N2=uniforms(seed), grades_N=None)
    family: dict[int, list[int]] = {k: [k] for k in range(3)}
    for j in (3, 4):
        (parent,) = [k for k in range(3) if torch.equal(after.incoming[0][j], units.incoming[0][k])]
        assert torch.equal(after.incoming[1][j], units.incoming[1][parent])
        family[parent].append(j)
    for parent, members in family.items():
        for old, now in zip(units.outgoing, after.outgoing, strict=True):
            torch.testing.assert_close(now[:, members].sum(1), old[:, parent], rtol=1e-12, atol=1e-14)
            shares = now[0, members] / old[0, parent]
            assert (shares > 0).all()
            assert (shares > 1 / 7).all()
            if len(members) == 1:
                assert torch.equal(now[:, parent], old[:, parent])
    whole = LIVING.double()
    assert difference(Dense(), units, whole, after, whole + NEW.double()) < 1e-12


def test_at_a_fractional_grade_a_pair_speaks_with_the_shares_weighted_by_their_grades() -> None:
    new_N = torch.tensor([False] * 3 + [True] + [False] * 2)
    units, initial = Dense().units(0), Dense().units(100)
    uniform_N2 = torch.full((N, 2), 0.5, dtype=torch.float64)  # unit 1 is copied, and its share is even
    after = grown("net2net", units, initial, living_N=LIVING, new_N=new_N, uniform_N2=uniform_N2)
    for old, now in zip(units.outgoing, after.outgoing, strict=True):
        torch.testing.assert_close(now[:, 1], old[:, 1] / 2, rtol=1e-15, atol=0)
        torch.testing.assert_close(now[:, 3], old[:, 1] / 2, rtol=1e-15, atol=0)
    ones = torch.tensor([1.0, 1, 1, 0.3, 0, 0], dtype=torch.float64)
    louder = torch.tensor([1.0, (1 + 0.3) / 2, 1, 0, 0, 0], dtype=torch.float64)
    assert difference(Dense(), after, ones, units, louder) < 1e-12


def test_where_nobody_lives_a_copy_is_a_unit_that_says_nothing() -> None:
    units, initial = Dense().units(0), Dense().units(100)
    nobody = torch.zeros(N, dtype=torch.bool)
    copied = grown("net2net", units, initial, living_N=nobody, new_N=NEW, uniform_N2=uniforms())
    silent = grown("zero", units, initial, living_N=nobody, new_N=NEW)
    assert all(map(torch.equal, tensors(copied), tensors(silent)))


# -- gradmax -----------------------------------------------------------------------------------------------------------


def incoming_gradients(network: Network, units: Units, m_N: Tensor) -> Tensor:
    """dL/d(incoming) by autograd, [N, C]."""
    leaves = [w.clone().requires_grad_() for w in units.incoming]
    loss = network.loss(network.read(replace(units, incoming=tuple(leaves)), m_N, network.x()))
    return torch.cat([g.flatten(1) if g.dim() > 1 else g[:, None] for g in torch.autograd.grad(loss, leaves)], 1)


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("network", PLAIN)
def test_the_matrix_gives_the_gradient_of_units_at_zero(network: type[Network], activation: str) -> None:
    """phi'(0) m W_out' G, for outgoing weights of any kind, is what autograd finds (two units: with their own)."""
    net, m_N = network(activation), grades(0.6)
    units, _, after = grow("gradmax", net)
    matrix_WC = net.matrix(units, grades())
    direction_WN = torch.cat([w.transpose(0, 1).flatten(1) for w in after.outgoing], 1).T
    want_RC = SLOPES[activation] * 0.6 * direction_WN[:, NEW].T @ matrix_WC
    torch.testing.assert_close(incoming_gradients(net, after, m_N)[NEW], want_RC, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("network", PLAIN)
def test_gradmax_has_the_steepest_gradient_of_all_directions(network: type[Network]) -> None:
    """||grad w_in|| = c sigma_1 for the first new unit, c sigma_2 for the second; 200 other directions have less."""
    net, c = network("tanh"), 0.3
    units, _, after = grow("gradmax", net, norm=c)
    sigma = torch.linalg.svdvals(net.matrix(units, grades()))
    norms_N = incoming_gradients(net, after, grades(1.0)).norm(dim=1)
    assert norms_N[3:5].tolist() == pytest.approx((c * sigma[:2]).tolist(), rel=1e-10)
    best = 0.0
    for seed in range(200):
        parts = [normal(w.shape[0], *w.shape[2:], seed=1000 * seed + i) for i, w in enumerate(after.outgoing)]
        length = sum(float(p.square().sum()) for p in parts) ** 0.5
        outgoing = tuple(w.clone() for w in after.outgoing)
        for w, part in zip(outgoing, parts, strict=True):
            w[:, 3] = c * part / length
        other = incoming_gradients(net, replace(after, outgoing=outgoing), grades(1.0))[3].norm()
        best = max(best, float(other))
    assert 0.2 * c * float(sigma[0]) < best <= c * float(sigma[0]) * (1 + 1e-12)


@pytest.mark.parametrize("network", PLAIN)
def test_new_outgoing_weights_are_orthogonal_and_as_long_as_those_of_the_living(network: type[Network]) -> None:
    units, _, after = grow("gradmax", network())
    columns = torch.cat([w.transpose(0, 1).flatten(1) for w in after.outgoing], 1)
    old = torch.cat([w.transpose(0, 1).flatten(1) for w in units.outgoing], 1)
    c = float(old[LIVING].norm(dim=1).mean())
    gram = columns[NEW] @ columns[NEW].T
    torch.testing.assert_close(gram, c**2 * torch.eye(2, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert all(not w[NEW].any() for w in after.incoming)


@pytest.mark.parametrize("network", PLAIN)
def test_relu_needs_a_small_share_of_initial_weights_to_wake(network: type[Network]) -> None:
    net = network("relu")
    units, _, asleep = grow("gradmax", net)
    assert not incoming_gradients(net, asleep, grades(1.0))[NEW].any()
    changes = []
    for share in (1e-3, 1e-5):
        _, initial, awake = grow("gradmax", net, incoming=share)
        assert torch.equal(awake.incoming[0][NEW], share * initial.incoming[0][NEW])
        assert (incoming_gradients(net, awake, grades(1.0))[NEW].norm(dim=1) > 1e-6).all()
        changes.append(difference(net, units, grades(), awake, grades(1.0)))
    assert changes[0] < 0.1
    assert changes[1] == pytest.approx(1e-2 * changes[0], rel=1e-6)


def test_more_units_than_singular_vectors_take_them_again() -> None:
    net = Headed()
    units, initial = net.units(0), net.units(100)
    new_N = torch.arange(N) > 0
    after = grown("gradmax", units, initial, living_N=~new_N, new_N=new_N, matrix_WC=net.matrix(units, grades()))
    assert torch.equal(after.outgoing[0][:, 1], after.outgoing[0][:, 1 + OUTPUTS])


def test_a_lane_without_numbers_or_without_a_gradient_still_grows() -> None:
    units, initial = Dense().units(0), Dense().units(100)
    for value in (float("nan"), float("inf"), 0.0):
        matrix_WC = torch.full((OUTPUTS + 4, 6), value, dtype=torch.float64)
        after = grown("gradmax", units, initial, living_N=LIVING, new_N=NEW, matrix_WC=matrix_WC)
        assert all(t.isfinite().all() for t in tensors(after))


# -- the optimiser's side, and faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GROWTHS)
def test_a_unit_that_is_new_is_not_yet_among_the_living(kind: str) -> None:
    """So a caller may pass who is a member now."""
    _, _, after = grow(kind, Dense())
    _, _, same = grow(kind, Dense(), living_N=LIVING | NEW)
    assert all(map(torch.equal, tensors(after), tensors(same)))


def test_nobody_new_is_no_growth() -> None:
    nobody = torch.zeros(N, dtype=torch.bool)
    units, initial = Dense().units(0), Dense().units(100)
    for kind in GROWTHS:
        after = grown(
            kind,
            units,
            initial,
            living_N=LIVING,
            new_N=nobody,
            uniform_N2=uniforms(),
            matrix_WC=Dense().matrix(units, grades()),
        )
        assert all(map(torch.equal, tensors(units), tensors(after)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("grow", "unknown growth 'grow'; known: fresh, zero"), ("net2net", "uniform_N2"), ("gradmax", "matrix_WC")],
)
def test_what_is_missing_is_named(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grown(kind, Dense().units(0), Dense().units(100), living_N=LIVING, new_N=NEW)


def test_plain_layers_are_units() -> None:
    """The weights of torch's own modules, as they are, float32."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, N), nn.Linear(N, OUTPUTS)
    units = Units(incoming=(first.weight.detach(), first.bias.detach()), outgoing=(second.weight.detach(),))
    after = grown("zero", units, units, living_N=LIVING, new_N=NEW)
    assert not after.outgoing[0][:, NEW].any()
    assert after.outgoing[0].dtype == torch.float32
