"""Weights updated by two kernels: as PyTorch's optimizers do, step after step."""

from copy import deepcopy
from itertools import chain

import pytest
import torch
from tests.helpers import random_painn

from mlff_distiller.errors import KernelError
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.students import NEP
from mlff_distiller.training import TrainingSettings, descent
from mlff_distiller.training.descent import Descent, KernelDescent, descent_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def nep(elements: tuple[str, ...], dtype: torch.dtype, device: str, neurons: int = 7) -> NEP:
    """Its network is wide for one element, and tall for a short descriptor."""
    shape = Shape(4, 2, 5, 8, 3, False, False, neurons)
    student = NEP(elements, shape, ((4.0, 3.5),) * len(elements)).to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for own in student.parameters():
            own.copy_(torch.randn(own.shape, generator=generator, dtype=torch.float64))
    return student


def pair(student: NEP, settings: TrainingSettings) -> list[Descent]:
    made = []
    for kind in (Descent, KernelDescent):
        own = deepcopy(student)
        made.append(kind(own, deepcopy(own).requires_grad_(requires_grad=False), settings))
    return made


def learn(of: Descent, number: int) -> None:
    """A step by gradients of any size, the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    size = 10.0 ** (number % 5 - 2)
    for own in of.parameters:
        random = torch.randn(own.shape, generator=generator, dtype=torch.float64)
        own.grad = (size * random).to(own)
    of.set_rate(0.01 / (1 + number))
    of.step()


def tensors(of: Descent) -> list[torch.Tensor]:
    states = [of.optimizer.state[own] for own in of.parameters]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq", "step")]
    return [own.detach() for own in chain(of.parameters, of.averages, moments)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize(("elements", "neurons"), [(("Si",), 7), (("Cu", "O", "H"), 40)])
def test_kernels_do_what_the_optimizer_does(elements, neurons, optimizer, dtype, device):
    settings = TrainingSettings(optimizer=optimizer, weight_decay=0.3, ema_decay=0.8)
    both = pair(nep(elements, dtype, device, neurons), settings)
    start = [own.clone() for own in both[0].parameters]
    for number in range(20):
        for of in both:
            learn(of, number)
    assert all(not torch.equal(a, b) for a, b in zip(start, both[0].parameters, strict=True))
    for expected, found in zip(*map(tensors, both), strict=True):
        scale = float(expected.abs().max())
        rounding = 1e-5 if dtype == torch.float32 else 1e-12
        if device == "cuda":  # PyTorch keeps rates there in single precision
            rounding = max(rounding, 1e-6)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=rounding * scale)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("neurons", "n_angular"), [(50, 8), (70, 8), (180, 5)])
def test_a_network_of_any_size_is_turned(neurons, n_angular, device):
    """On a GPU: in place in shared memory, in place in the GPU's, and not in place."""
    shape = Shape(8, n_angular, 10, 10, 4, True, True, neurons)
    student = NEP(("Si",), shape, ((5.0, 4.0),)).to(device, torch.float32)
    both = pair(student, TrainingSettings(weight_decay=0.3))
    for number in range(5):
        for of in both:
            learn(of, number)
    for expected, found in zip(*map(tensors, both), strict=True):
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def copied(of: Descent, to: Descent) -> None:
    """As a checkpoint does."""
    for mine, theirs in ((to.parameters, of.parameters), (to.averages, of.averages)):
        for own, source in zip(mine, theirs, strict=True):
            own.data.copy_(source)
    to.optimizer.load_state_dict(deepcopy(of.optimizer.state_dict()))


@pytest.mark.parametrize("device", DEVICES)
def test_it_continues_bit_by_bit(device):
    student = nep(("Cu", "Au"), torch.float32, device)
    straight, continued = (pair(student, TrainingSettings())[1] for _ in range(2))
    for number in range(6):
        learn(straight, number)
        if number > 2:
            learn(continued, number)
        elif number == 2:
            copied(straight, continued)
            for state in continued.optimizer.state.values():  # another default dtype's
                state["step"] = state["step"].double()
    for first, second in zip(*map(tensors, (straight, continued)), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("way", [1, -1])
def test_each_continues_what_the_other_began(way):
    student = nep(("Cu", "Au"), torch.float64, "cpu")
    straight = pair(student, TrainingSettings())[0]
    first, second = pair(student, TrainingSettings())[::way]
    for number in range(6):
        learn(straight, number)
        if number == 3:
            copied(first, second)
        learn(first if number < 3 else second, number)
    for expected, found in zip(*map(tensors, (straight, second)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_tensor_without_a_gradient_stays():
    _, of = pair(nep(("Si",), torch.float64, "cpu"), TrainingSettings(weight_decay=0.0))
    before = [own.detach().clone() for own in of.parameters]
    for own in of.parameters[1:]:
        own.grad = torch.ones_like(own)
    of.set_rate(0.01)
    of.step()
    stayed = [torch.equal(a, b) for a, b in zip(before, of.parameters, strict=True)]
    assert stayed == [True] + [False] * (len(before) - 1)


def test_a_gradient_that_is_no_number_shows():
    for of in pair(nep(("Si",), torch.float32, "cpu"), TrainingSettings()):
        for own in of.parameters:
            own.grad = torch.ones_like(own)
        of.parameters[0].grad.view(-1)[3] = torch.nan
        of.set_rate(0.01)
        of.step()
        assert all(bool(own.isnan().all()) for own in of.parameters)


@pytest.mark.parametrize(("neurons", "by_kernels"), [(40, True), (200, False)])
def test_kernels_are_for_small_matrices(neurons, by_kernels):
    student = NEP(("Si",), Shape(8, 8, 10, 10, 4, True, True, neurons), ((5.0, 4.0),)).float()
    made = descent_of(student, deepcopy(student), TrainingSettings())
    assert isinstance(made, KernelDescent) == by_kernels


def test_painn_keeps_its_optimizer():
    student = random_painn().float()
    assert type(descent_of(student, deepcopy(student), TrainingSettings())) is Descent


def test_where_nothing_compiles_pytorch_steps(monkeypatch):
    def fails(*_, **__):
        raise KernelError("no compiler")

    monkeypatch.setattr(descent, "OnTensors", fails)
    student = nep(("Si",), torch.float32, "cpu")
    with pytest.warns(UserWarning, match="without kernels, slower: no compiler"):
        made = descent_of(student, deepcopy(student), TrainingSettings())
    assert type(made) is Descent


@pytest.mark.gpu
def test_a_graph_of_it_repeats_what_it_does():
    student = nep(("Cu", "O"), torch.float32, "cuda")
    eager, recorded = (pair(student, TrainingSettings())[1] for _ in range(2))
    for of in (eager, recorded):
        for number in range(3):
            learn(of, number)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded.step()
    for rate in (0.02, 0.03):
        for of in (eager, recorded):
            of.set_rate(rate)
        eager.step()
        graph.replay()
    for expected, found in zip(*map(tensors, (eager, recorded)), strict=True):
        assert torch.equal(found, expected)
