"""The compiled kernels against readable tensor code and automatic derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import random_rotations, rotation_from_vector
from cryofire.physics import kernels, tensor_kernels
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import (
    SpectrumGrid,
    central_sections_reference,
    grid_reach,
    spectrum_grid,
)
from cryofire.physics.shift import phase_ramp

BOX, SHELL = 20, 9


def relative_error(value: Tensor | np.ndarray, expected: Tensor) -> float:
    return float((torch.as_tensor(value) - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Images:
    """Random images, poses, latents and a random model of three components, in single precision."""

    plane: HalfPlane
    grid: SpectrumGrid
    rotations: Tensor
    shifts: Tensor
    data: Tensor
    modulation: Tensor
    contrast: Tensor
    latents: Tensor

    @property
    def frequencies(self) -> np.ndarray:
        return np.asarray(self.plane.frequencies.float().numpy())

    @property
    def batch(self) -> ImageBatch:
        """The images in double precision."""
        return ImageBatch(self.data.to(torch.complex128), self.modulation.double(), self.plane)


@pytest.fixture(params=[20, 21])
def images(request: pytest.FixtureRequest) -> Images:
    """Seven images of an even and of an odd box."""
    generator = torch.Generator().manual_seed(0)
    box, count = request.param, 7
    plane = half_plane(box, SHELL)
    volumes = torch.randn(3, box, box, box, generator=generator)
    return Images(
        plane,
        spectrum_grid(volumes, SHELL),
        random_rotations(count, generator),
        3 * torch.randn(count, 2, generator=generator),
        30 * torch.randn(count, len(plane), generator=generator, dtype=torch.complex64),
        torch.randn(count, len(plane), generator=generator),
        0.5 + torch.rand(count, generator=generator),
        torch.randn(count, 2, generator=generator),
    )


def empty_grids(images: Images, channels: int) -> np.ndarray:
    reach = grid_reach(SHELL)
    return np.zeros((2, 2 * reach + 1, 2 * reach + 1, reach + 1, channels), np.float32)


def inserted(images: Images, slots: np.ndarray, numerators: Tensor, denominators: Tensor, lanes: int = 1) -> np.ndarray:
    grids = empty_grids(images, 3)
    kernels.insert_slices(
        grids, lanes, images.rotations.numpy(), slots, images.frequencies, numerators.numpy(), denominators.numpy()
    )  # fmt: skip
    return grids


def images_inserted(images: Images, slots: np.ndarray, first: Tensor, second: Tensor, lanes: int = 1) -> np.ndarray:
    grids = empty_grids(images, 2 * first.shape[1] + second.shape[1])
    kernels.insert_images(
        grids, lanes, images.rotations.numpy(), images.shifts.numpy(), slots, images.frequencies, images.plane.box,
        images.data.numpy(), images.modulation.numpy(), first.numpy(), second.numpy(),
    )  # fmt: skip
    return grids


def test_insert_slices_equals_its_readable_twin_in_each_slot(images: Images) -> None:
    slots = np.array([0, 1, 1, 0, 1, 0, 0], np.int32)
    grids = inserted(images, slots, images.data, images.modulation)
    twins = torch.from_numpy(empty_grids(images, 3)).double()
    tensor_kernels.insert_slices(
        twins, images.rotations.double(), torch.from_numpy(slots), images.plane.frequencies,
        images.data.to(torch.complex128), images.modulation.double(),
    )  # fmt: skip
    for slot in range(2):
        assert relative_error(grids[slot], twins[slot]) < 1e-5


def test_insertion_is_the_adjoint_of_extraction(images: Images) -> None:
    out = np.empty((7, len(images.plane), 2), np.float32)
    grid = images.grid.values[..., :2].contiguous()
    kernels.extract_slices(grid.numpy(), images.rotations.numpy(), images.frequencies, out)
    sections = torch.view_as_complex(torch.from_numpy(out)).to(torch.complex128)
    image_side = (sections.conj() * images.data).real.sum()
    grids = inserted(images, np.zeros(7, np.int32), images.data, images.modulation)
    grid_side = (grid.double() * torch.from_numpy(grids[0, ..., :2])).sum()
    assert abs(float(image_side - grid_side)) < 1e-5 * float(sections.norm() * images.data.norm())


def test_insert_images_moves_and_modulates_before_it_inserts(images: Images) -> None:
    """The adjoint of the image model: conjugate phase ramp, contrast transfer, moments of the coordinates."""
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(7, 2, generator=generator), torch.randn(7, 3, generator=generator)
    slots = np.array([1, 1, 0, 0, 1, 0, 1], np.int32)
    grids = images_inserted(images, slots, first, second)
    ramp = phase_ramp(images.shifts.double(), images.plane.frequencies, images.plane.box)
    back = (images.modulation * images.data * ramp.conj()).to(torch.complex64)
    square = images.modulation.square()
    for c in range(2):
        expected = inserted(images, slots, first[:, c, None] * back, square)
        assert relative_error(grids[..., 2 * c : 2 * c + 2], torch.from_numpy(expected[..., :2])) < 1e-5
    for pair in range(3):
        expected = inserted(images, slots, back, second[:, pair, None] * square)
        assert relative_error(grids[..., 4 + pair], torch.from_numpy(expected[..., 2])) < 1e-5


@pytest.mark.parametrize("components", [1, 2])
def test_insert_images_equals_its_readable_twin(
    images: Images, components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_kernels, "POINTS", 3 * len(images.plane))  # in pieces of three images
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(7, components, generator=generator)
    second = torch.randn(7, components * (components + 1) // 2, generator=generator)
    slots = np.array([1, 1, 0, 0, 1, 0, 1], np.int32)
    grids = images_inserted(images, slots, first, second)
    twins = torch.zeros(grids.shape, dtype=torch.float64)
    tensor_kernels.insert_images(
        twins, images.batch, images.rotations.double(), images.shifts.double(), torch.from_numpy(slots), first.double(),
        second.double(),
    )  # fmt: skip
    assert relative_error(grids, twins) < 1e-5


@pytest.mark.parametrize("lanes", [2, 3, 7])
def test_sums_are_the_same_however_many_threads_share_a_grid(images: Images, lanes: int) -> None:
    generator = torch.Generator().manual_seed(6)
    slots = np.array([1, 1, 0, 0, 1, 0, 1], np.int32)
    several, pairs = torch.randn(7, 2, generator=generator), torch.randn(7, 3, generator=generator)
    for first, second in ((several, pairs), (several[:, :1].contiguous(), pairs[:, :1].contiguous())):
        alone = images_inserted(images, slots, first, second)
        assert np.array_equal(images_inserted(images, slots, first, second, lanes), alone)
    alone = inserted(images, slots, images.data, images.modulation)
    assert np.array_equal(inserted(images, slots, images.data, images.modulation, lanes), alone)


def model(images: Images, i: int, parameters: Tensor) -> Tensor:
    """a C e^{-2πik·t/n} (S_0 + Σ z_j S_j) of image i in double precision, real and imaginary parts."""
    tangent, shift, contrast, latents = parameters.split([3, 2, 1, 2])
    rotation = rotation_from_vector(tangent) @ images.rotations[i].double()
    grid = SpectrumGrid(images.grid.values.double(), SHELL)
    sections = central_sections_reference(grid, rotation[None], images.plane)[0]
    coordinates = torch.cat([torch.ones(1, dtype=torch.float64), latents]).to(sections.dtype)
    ramp = phase_ramp(shift, images.plane.frequencies, images.plane.box)
    return torch.view_as_real(contrast * images.modulation[i] * ramp * (coordinates @ sections)).flatten()


def central_differences(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-6) -> Tensor:
    """Jacobian by symmetric differences, shape (output, input)."""
    steps = step * torch.eye(len(point), dtype=point.dtype)
    return torch.stack([(function(point + s) - function(point - s)) / (2 * step) for s in steps], dim=1)


def compiled_equations(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, gradient and loss by the compiled kernel."""
    hessian, gradient, loss = torch.empty(7, 8, 8), torch.empty(7, 8), torch.empty(7)
    kernels.normal_equations(
        images.grid.values.numpy(), images.rotations.numpy(), images.shifts.numpy(), images.latents.numpy(),
        images.contrast.numpy(), images.frequencies, images.plane.box, images.data.numpy(), images.modulation.numpy(),
        hessian.numpy(), gradient.numpy(), loss.numpy(),
    )  # fmt: skip
    return hessian, gradient, loss


def tensor_equations(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """The same by tensor operations, in double precision."""
    return tensor_kernels.normal_equations(
        images.grid.values.double(), images.batch, images.rotations.double(), images.shifts.double(),
        images.contrast.double(), images.latents.double(),
    )  # fmt: skip


def test_normal_equations_equal_their_readable_twin_without_latents(images: Images) -> None:
    alone = replace(
        images, grid=SpectrumGrid(images.grid.values[..., :2].contiguous(), SHELL), latents=torch.zeros(7, 0)
    )
    hessian, gradient, loss = tensor_equations(alone)
    still = replace(images, latents=torch.zeros(7, 2))
    compiled = compiled_equations(still)
    assert relative_error(compiled[0][:, :6, :6], hessian) < 1e-5
    assert relative_error(compiled[1][:, :6], gradient) < 1e-5
    assert relative_error(compiled[2], loss) < 1e-5


@pytest.mark.parametrize("equations", [compiled_equations, tensor_equations])
def test_normal_equations_are_those_of_the_model(
    images: Images, equations: Callable[[Images], tuple[Tensor, Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_kernels, "POINTS", 3 * len(images.plane))  # in pieces of three images
    hessian, gradient, loss = equations(images)
    for i in range(4):
        state = torch.cat([torch.zeros(3), images.shifts[i], images.contrast[i : i + 1], images.latents[i]]).double()
        residual = torch.view_as_real(images.data[i]).double().flatten() - model(images, i, state)
        jacobian = central_differences(lambda p, i=i: model(images, i, p), state)
        assert float(loss[i]) == pytest.approx(float(residual.square().sum()), rel=1e-4)
        scale = jacobian.norm(dim=0)  # parameters have different units: compare in those of each one's sensitivity
        expected = 2 * jacobian.T @ residual
        assert ((gradient[i] - expected).abs() < 2e-4 * residual.norm() * scale).all()
        product = 2 * jacobian.T @ jacobian
        assert (hessian[i] - product).abs().div(scale[:, None] * scale).max() < 2e-4
