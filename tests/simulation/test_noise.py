"""Noise: its spectrum, its scale, and that it depends on nothing but seed and particle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryofire.errors import FileFormatError, MissingFileError
from cryofire.formats.mrc import stack_writer
from cryofire.simulation.noise import NoiseSource, RadialSpectrum, measured_spectrum, noise_source, read_noise

FALLING = RadialSpectrum(np.linspace(0, 0.2, 5), np.array([8.0, 4.0, 2.0, 1.0, 0.5]))


def power_per_shell(images: np.ndarray) -> np.ndarray:
    box = images.shape[-1]
    axis = np.arange(box) - box // 2
    shells = np.rint(np.hypot(axis[:, None], axis)).astype(int).ravel()
    power = np.square(np.abs(np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1)))).mean(axis=0).ravel() / box**2
    return np.bincount(shells, power) / np.bincount(shells)


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("spectrum", [None, FALLING])
def test_noise_does_not_depend_on_how_it_is_asked_for(box: int, spectrum: RadialSpectrum | None) -> None:
    source = noise_source(spectrum, 2.0, 7, box, 3.0)
    together = source.images(np.arange(3, 9))
    for row in range(6):
        assert (source.images(np.array([3 + row]))[0] == together[row]).all()
    assert (noise_source(spectrum, 2.0, 8, box, 3.0).images(np.arange(3, 9)) != together).all()


@pytest.mark.parametrize("box", [32, 33])
def test_white_noise_is_white(box: int) -> None:
    images = noise_source(None, 5.0, 0, box, 3.0).images(np.arange(1500))
    power = power_per_shell(images)
    assert power[2 : box // 2] == pytest.approx(5.0, rel=0.05)
    assert images.mean() == pytest.approx(0, abs=0.01)
    neighbours = np.corrcoef(images[:-1].ravel(), images[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.004


@pytest.mark.parametrize("box", [32, 33])
def test_coloured_noise_has_its_spectrum(box: int) -> None:
    images = noise_source(FALLING, 3.0, 0, box, 2.0).images(np.arange(1500))
    shells = np.arange(2, box // 2)
    expected = 3.0 * np.interp(shells / (box * 2.0), FALLING.frequency, FALLING.variance)
    assert power_per_shell(images)[2 : box // 2] == pytest.approx(expected, rel=0.06)
    assert images.var() == pytest.approx(3.0 * FALLING.on_grid(box, 2.0).mean(), rel=0.02)


def test_no_noise_is_none() -> None:
    assert not noise_source(None, 0.0, 0, 8, 1.0).images(np.arange(2)).any()
    assert isinstance(noise_source(FALLING, 0.0, 0, 8, 1.0), NoiseSource)


@pytest.mark.parametrize("box", [15, 16])
def test_normalised_spectrum_has_unit_pixel_variance(box: int) -> None:
    assert FALLING.normalised(box, 4.0).on_grid(box, 4.0).mean() == pytest.approx(1.0)


@pytest.mark.parametrize("box", [32, 33])
def test_spectrum_is_measured_from_windows(tmp_path: Path, box: int) -> None:
    with stack_writer(tmp_path / "windows.mrcs", box, 2.0) as writer:
        writer.append(noise_source(FALLING, 1.0, 0, box, 2.0).images(np.arange(900)) + 50.0)
    variance, pixel_size = measured_spectrum(tmp_path / "windows.mrcs")
    expected = np.interp(np.arange(len(variance)) / (box * 2.0), FALLING.frequency, FALLING.variance)
    assert pixel_size == pytest.approx(2.0)
    assert variance[2:] == pytest.approx(expected[2:], rel=0.1)
    spectrum = read_noise(tmp_path / "windows.mrcs", None, 99.0)
    assert spectrum.frequency[-1] == pytest.approx(1 / 4.0, rel=0.1)


def test_windows_of_real_ice_give_a_spectrum(shared_data: Path) -> None:
    variance, pixel_size = measured_spectrum(shared_data / "micrographs" / "fei_lowsignal_bin3_96.mrcs")
    assert pixel_size == pytest.approx(2.56, abs=0.01)
    assert len(variance) == 48
    assert variance[3] > 1.2 * variance[-1] > 0


def test_radial_spectrum_reaches_the_nyquist_frequency(shared_data: Path) -> None:
    spectrum = read_noise(shared_data / "metadata" / "noise_10076.npy", 1.6375, 1.0)
    assert len(spectrum.variance) == 127
    assert spectrum.frequency[-1] == pytest.approx(126 / (256 * 1.6375))
    assert read_noise(shared_data / "metadata" / "noise_10076.npy", None, 2.0).frequency[1] == pytest.approx(1 / 512)


@pytest.mark.parametrize("content", [np.zeros(4), np.array([1.0, np.nan]), np.ones((2, 2)), np.ones(1)])
def test_impossible_spectra_are_refused(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(FileFormatError, match=r"bad\.npy"):
        read_noise(tmp_path / "bad.npy", None, 1.0)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(FileFormatError):
        read_noise(tmp_path / "text.npy", None, 1.0)
    with pytest.raises(MissingFileError):
        read_noise(tmp_path / "nowhere.npy", None, 1.0)
    with stack_writer(tmp_path / "constant.mrcs", 16, 1.0) as writer:
        writer.append(np.ones((3, 16, 16), dtype=np.float32))
    with pytest.raises(FileFormatError, match="constant"):
        measured_spectrum(tmp_path / "constant.mrcs")
