"""Centred Fourier transforms of images and volumes, for even and odd boxes.

Origin and zero frequency sit at index n // 2 of every axis. The transform is unnormalised,

    F(k) = Σ_r f(r) exp(-2πi k·r / n),

so that the spectrum of a projection equals a central section of the spectrum of its volume without any factor.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryofire.arrays import Image, ImageSpectrum, Volume, VolumeSpectrum

HalfSpectrum = Complex[Tensor, "*batch kz ky kx"]
Window = Float[Tensor, " position"]

_PLANE = (-2, -1)
_SPACE = (-3, -2, -1)


def image_spectrum(image: Image) -> ImageSpectrum:
    """Centred spectrum of real images, shape (..., y, x)."""
    return _forward(image, _PLANE)


def image_from_spectrum(spectrum: ImageSpectrum) -> Image:
    """Real images of a centred spectrum; the inverse of `image_spectrum`."""
    return _backward(spectrum, _PLANE).real


def volume_spectrum(volume: Volume) -> VolumeSpectrum:
    """Centred spectrum of real volumes, shape (..., z, y, x)."""
    return _forward(volume, _SPACE)


def volume_from_spectrum(spectrum: VolumeSpectrum) -> Volume:
    """Real volumes of a centred spectrum; the inverse of `volume_spectrum`."""
    return _backward(spectrum, _SPACE).real


def half_volume_spectrum(volume: Volume, size: int, reach: int, window: Window | None = None) -> HalfSpectrum:
    """Spectrum of real volumes zero-padded to `size`, cropped to |index| ≤ reach < size / 2, x ≥ 0 only.

    Shape (..., 2 reach + 1, 2 reach + 1, reach + 1), zero frequency at (reach, reach, 0); the rest follows from Friedel symmetry.
    One matrix product an axis: nothing is padded, moved or cropped, few shells cost little, and a window that multiplies the
    volume along each axis costs nothing.
    """
    waves = _waves(volume.shape[-1], size, reach, volume.dtype, volume.device, window)
    along = torch.view_as_real(waves[reach:].T.contiguous()).flatten(-2)
    rows = torch.view_as_complex((volume @ along).unflatten(-1, (-1, 2)))
    columns = waves @ rows
    return (waves @ columns.flatten(-2)).unflatten(-1, columns.shape[-2:])


def volume_from_half_spectrum(spectrum: HalfSpectrum, size: int, box: int, window: Window | None = None) -> Volume:
    """Real volumes of `box` voxels from such a half spectrum, times a window along each axis.

    Without one, the inverse of `half_volume_spectrum` for band-limited volumes.
    """
    reach = spectrum.shape[-1] - 1
    waves = _waves(box, size, reach, spectrum.real.dtype, spectrum.device, window)
    back = waves.mH
    rows = back @ (back @ spectrum.flatten(-2)).unflatten(-1, spectrum.shape[-2:])
    twice = torch.full((reach + 1, 1), 2.0 / size**3, dtype=waves.real.dtype, device=waves.device)
    twice[0] /= 2  # the plane x = 0 holds its own mates
    along = torch.view_as_real(waves[reach:] * twice).movedim(-1, 1).flatten(0, 1)
    return torch.view_as_real(rows).flatten(-2) @ along


def _waves(
    box: int, size: int, reach: int, dtype: torch.dtype, device: torch.device, window: Window | None
) -> Complex[Tensor, "index position"]:
    """exp(-2πi k x / size) for |k| ≤ reach and the positions x of a centred box, times the window at x."""
    position = torch.arange(box, device=device).double() - box // 2
    index = torch.arange(-reach, reach + 1, device=device).double()
    angle = -2 * math.pi / size * index[:, None] * position
    height = torch.ones_like(position) if window is None else window.to(position)
    return torch.complex((height * angle.cos()).to(dtype), (height * angle.sin()).to(dtype))


def half_grid_shells(reach: int) -> Int[Tensor, "kz ky kx"]:
    """Shell of every point of the half grid |index| ≤ reach, x ≥ 0."""
    k = torch.arange(-reach, reach + 1).double()
    return (k[:, None, None] ** 2 + k[:, None] ** 2 + k[reach:] ** 2).sqrt().round().long()


def shells_scaled(volumes: Volume, factors: Float[Tensor, "*volume shell"]) -> Volume:
    """Real volumes with the coefficients of every shell multiplied by a factor; nothing is left beyond the last shell."""
    box, reach = volumes.shape[-1], factors.shape[-1] - 1
    shells = half_grid_shells(reach).to(factors.device)
    table = torch.where(shells <= reach, factors[..., shells.clamp_max(reach)], 0.0)
    return volume_from_half_spectrum(half_volume_spectrum(volumes, box, reach) * table, box, box)


def spectrum_at(image: Image, frequencies: Int[Tensor, "coefficient 2"]) -> Complex[Tensor, "*batch coefficient"]:
    """Spectrum of real images at some integer frequencies (k_x, k_y) with k_x ≥ 0, both below half the box.

    The same numbers as `image_spectrum`, from a real transform and without moving the origin in memory: several times cheaper.
    """
    box = image.shape[-1]
    kx, ky = frequencies.unbind(-1)
    spectrum = torch.fft.rfftn(image, dim=_PLANE).flatten(-2)
    return spectrum.index_select(-1, ky.remainder(box) * (box // 2 + 1) + kx) * _origin_phase(box, frequencies)


def image_of(
    coefficients: Complex[Tensor, "*batch coefficient"], frequencies: Int[Tensor, "coefficient 2"], box: int
) -> Image:
    """Real images whose spectrum has these values at (k_x, k_y), the conjugates at the opposite frequencies, and zeros elsewhere.

    Frequencies have k_x > 0, or k_x = 0 and k_y > 0, and lie below half the box.
    """
    width = box // 2 + 1
    moved = coefficients * _origin_phase(box, frequencies).conj()
    spectrum = moved.new_zeros(*moved.shape[:-1], box * width)
    kx, ky = frequencies.unbind(-1)
    spectrum[..., ky.remainder(box) * width + kx] = moved
    edge = kx == 0
    spectrum[..., (-ky[edge]).remainder(box) * width] = moved[..., edge].conj()
    return torch.fft.irfftn(spectrum.unflatten(-1, (box, width)), s=(box, box), dim=_PLANE)


@lru_cache(maxsize=64)
def _turns(box: int) -> Tensor:
    angle = 2 * math.pi * (box // 2) / box * torch.arange(2 * box).double()
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def _origin_phase(box: int, frequencies: Tensor) -> Tensor:
    """exp(2πi (k_x + k_y) c / n): moves the origin from index c = n // 2 to index 0."""
    return _turns(box)[frequencies.sum(-1).remainder(box)]


def resize_centred(array: Tensor, size: int, axes: int) -> Tensor:
    """Centred crop or zero padding of the last `axes` axes to `size`, keeping index n // 2 at size // 2.

    On an image or volume it changes the box; on a centred spectrum it changes the sampling (multiply by (size / n) ** axes
    to keep real-space values).
    """
    for axis in range(-axes, 0):
        array = _resize_axis(array, size, axis)
    return array


def resample(array: Tensor, size: int, axes: int) -> Tensor:
    """Real array of the same field of view sampled on `size` points an axis, by Fourier cropping or padding."""
    dims = tuple(range(-axes, 0))
    scale = 1.0
    for dim in dims:
        scale *= size / array.shape[dim]
    return _backward(resize_centred(_forward(array, dims), size, axes), dims).real * scale


def _forward(array: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(array, dim=dims), dim=dims), dim=dims)


def _backward(spectrum: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=dims), dim=dims), dim=dims)


def _resize_axis(array: Tensor, size: int, axis: int) -> Tensor:
    current = array.shape[axis]
    if size <= current:
        return array.narrow(axis, current // 2 - size // 2, size)
    before = size // 2 - current // 2
    after = size - current - before
    padding = [0, 0] * (-axis - 1) + [before, after]
    return torch.nn.functional.pad(array, padding)
