"""Muon: AdamW, with the steps of matrices turned."""

import pytest
import torch
from tests.helpers import random_painn

from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.painn_setup import initialise
from mlff_distiller.training.optimizer import Muon, _turned, make_optimizer


@pytest.mark.parametrize("shape", [(5, 9), (12, 3), (4, 8)])
def test_singular_values_become_alike_whatever_stands_beside(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    step = left @ torch.diag(torch.linspace(1.0, 0.05, min(shape))) @ right
    beside = torch.randn(3, *shape, generator=generator)
    turned = _turned([torch.cat((beside, step[None]))])[0][3]
    assert float(turned.norm()) == pytest.approx(float(step.norm()), rel=1e-5)
    assert float(torch.linalg.cond(turned)) < 2.0
    torch.testing.assert_close(turned, _turned([step[None]])[0][0], rtol=1e-4, atol=1e-5)


def test_vectors_step_as_with_adamw_and_matrices_do_not():
    students = [random_painn().float() for _ in range(2)]
    for student, name in zip(students, ("adamw", "muon"), strict=True):
        optimizer = make_optimizer(name, student, 0.0)
        assert isinstance(optimizer, Muon) == (name == "muon")
        for number, own in enumerate(student.parameters()):
            generator = torch.Generator().manual_seed(100 + number)
            own.grad = torch.randn(own.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    for a, b in zip(*(student.parameters() for student in students), strict=True):
        vector = a.ndim < 2 or min(a.shape) == 1
        assert torch.equal(a, b) == vector


def test_matrices_decay_and_vectors_do_not():
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (4,)))
    plain = matrix.detach().clone(), vector.detach().clone()
    groups = [{"params": [matrix, vector], "lr": 0.1}]
    optimizer = Muon(groups, weight_decay=0.5, betas=(0.9, 0.99))
    for own in (matrix, vector):
        own.grad = torch.zeros_like(own)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), 0.95 * plain[0])
    assert torch.equal(vector.detach(), plain[1])


def test_a_step_of_a_wide_matrix_is_no_longer_than_that_of_a_narrow_one():
    norms = []
    for channels, layers in ((32, 2), (64, 2), (256, 2), (64, 4)):
        student = PaiNN(("H", "O"), 3.0, channels, layers, 4, 0.3)
        initialise(student, torch.Generator().manual_seed(0))
        optimizer = make_optimizer("muon", student, 0.0)
        (group,) = optimizer.param_groups
        group["lr"] = 0.01 * group["factor"]
        for own in student.parameters():
            own.grad = torch.randn(own.shape, generator=torch.Generator().manual_seed(1)).double()
        matrix = student.updates[0].u.weight
        before = matrix.detach().clone()
        optimizer.step()
        norms.append(float(torch.linalg.matrix_norm(matrix.detach() - before, 2)))
    assert norms[0] < norms[1]
    assert norms[2] == pytest.approx(norms[1], rel=0.1)
    assert norms[3] == pytest.approx(norms[1] / 2, rel=0.1)
