from __future__ import annotations

import numpy as np
import pytest
import torch

from cryofire.config import SearchSettings, SpeciesSettings
from cryofire.geometry.so3_grid import super_fibonacci_rotations
from cryofire.inference.search import expectation, run_start, search_shifts
from cryofire.inference.species import (
    SHOWS_NOTHING,
    MapEvidence,
    likeness,
    map_evidence,
    shows_nothing,
    species_of_images,
    species_of_maps,
)
from cryofire.physics.projection import central_sections, spectrum_grid

from .conftest import BOX, ToySet, blob_map, blob_positions, moved_arm, toy_set

SEARCH = SearchSettings(
    steps=24, least_images=150, most_images=300, rotations=1200, first_shell=4, last_shell=8, shift_radius=0.05,
    shift_spacing=0.03,
)  # fmt: skip
SETTINGS = SpeciesSettings(maps=3, judged=200, least=50)


def other_molecule() -> torch.Tensor:
    """A thin rod with a knob at one end, which shares nothing with the usual molecule."""
    along = torch.linspace(-9.5, 9.5, 40)
    rod = torch.stack([0.8 * (0.5 * along).cos(), 0.8 * (0.5 * along).sin(), along], dim=1)
    return torch.cat([rod, torch.tensor([2.5, 0.0, 8.0]) + 0.7 * blob_positions(seed=8, count=12) / 5.0])


@pytest.fixture(scope="module")
def mixture() -> ToySet:
    return toy_set(900, noise=25.0, seed=2, minority=0.4, other=other_molecule())


def test_evidence_is_that_of_the_search(mixture: ToySet) -> None:
    few, centres = mixture.images.take(torch.arange(20)), torch.randn(20, 2)
    volumes = [blob_map(blob_positions()), blob_map(other_molecule())]
    found = map_evidence(few, centres, volumes, SEARCH, lambda _: None)
    batch, rotations = few.batch(torch.arange(20), SEARCH.last_shell), super_fibonacci_rotations(SEARCH.rotations)
    for column, volume in enumerate(volumes):
        sections = central_sections(spectrum_grid(volume[None], SEARCH.last_shell), rotations, batch.plane)[:, 0]
        expected = expectation(batch, centres, search_shifts(BOX, SEARCH), sections, 1.0).log_evidence
        torch.testing.assert_close(found.maps[:, column], expected, rtol=1e-3, atol=0.05)


def test_true_maps_tell_their_images(mixture: ToySet) -> None:
    volumes = [blob_map(blob_positions()), blob_map(other_molecule())]
    evidence = map_evidence(mixture.images, torch.zeros(900, 2), volumes, SEARCH, lambda _: None)
    assert float((evidence.maps.argmax(1) == mixture.labels).float().mean()) > 0.99


def test_a_conformation_is_alike_and_another_molecule_is_not(mixture: ToySet, two_states: ToySet) -> None:
    settings = SpeciesSettings()
    same = [blob_map(blob_positions()), blob_map(moved_arm(blob_positions()))]
    within = map_evidence(two_states.images, torch.zeros(1200, 2), same, SEARCH, lambda _: None)
    other = [blob_map(blob_positions()), blob_map(other_molecule())]
    between = map_evidence(mixture.images, torch.zeros(900, 2), other, SEARCH, lambda _: None)
    assert likeness(within)[0, 1] > settings.alike > likeness(between)[0, 1]
    np.testing.assert_allclose(np.diag(likeness(between)), 1.0, rtol=1e-6)


def test_maps_linked_by_others_in_between_are_one_species() -> None:
    # three stations of a motion, each like its neighbour alone, a map without images, and something else
    kept = {
        0: [1.0, 0.8, 0.3, 0.0, 0.1],
        1: [0.8, 1.0, 0.8, 0.0, 0.1],
        2: [0.3, 0.8, 1.0, 0.0, 0.1],
        4: [0.1, 0.1, 0.1, 0.0, 1.0],
    }
    values = torch.tensor([[100.0 * value for value in kept[place]] for place in (0, 0, 1, 1, 2, 2, 4, 4, 4)])
    evidence = MapEvidence(values + 50.0, torch.full_like(values, 50.0))
    species = species_of_maps(evidence, SpeciesSettings(least=100), particles=900)
    assert species.tolist() == [0, 0, 0, -1, 1]
    assert species_of_maps(evidence, SpeciesSettings(least=500), particles=900).tolist() == [0, 0, 0, -1, -1]
    assert species_of_images(evidence, species).tolist() == [0] * 6 + [1] * 3


def test_a_species_of_many_maps_does_not_attract_by_their_number() -> None:
    evidence = MapEvidence(torch.tensor([[5.0, 5.0, 5.0, 5.5]]), torch.zeros(1, 4))
    assert species_of_images(evidence, np.array([0, 0, 0, 1])).tolist() == [1]


def test_several_maps_part_a_mixture_that_one_map_cannot(mixture: ToySet) -> None:
    rows, centres = torch.arange(SETTINGS.judged, 900), torch.zeros(900, 2)
    generator = torch.Generator().manual_seed(1)
    maps = run_start(mixture.images, rows, centres, SEARCH, generator, lambda _: None, count=SETTINGS.maps)
    aside = torch.arange(SETTINGS.judged)
    seen = map_evidence(mixture.images.take(aside), centres[aside], maps, SEARCH, lambda _: None)
    species = species_of_maps(seen, SETTINGS, particles=900)
    assert species.max() == 1
    kept = [volume for volume, kind in zip(maps, species, strict=True) if kind >= 0]
    labels = species_of_images(
        map_evidence(mixture.images, centres, kept, SEARCH, lambda _: None), species[species >= 0]
    )
    agreement = float((labels == mixture.labels).float().mean())
    assert max(agreement, 1 - agreement) > 0.97


def test_one_molecule_is_one_species_however_many_maps(two_states: ToySet) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.zeros(1200, 2)
    maps = run_start(two_states.images, torch.arange(200, 1200), centres, SEARCH, generator, lambda _: None, count=3)
    aside = torch.arange(200)
    seen = map_evidence(two_states.images.take(aside), centres[aside], maps, SEARCH, lambda _: None)
    assert species_of_maps(seen, SETTINGS, particles=1200).max() == 0


def test_a_species_that_its_own_images_say_nothing_of_is_no_particle() -> None:
    maps = torch.tensor(
        [[40.0, 0.2, -30.0], [30.0, -0.3, 0.0], [-20.0, 0.1, -9.0], [-25.0, 0.4, -8.0], [5.0, 0.0, 33.0]]
    )
    found = shows_nothing(MapEvidence(maps, torch.zeros(5, 3)), np.array([0, 1, 0]))
    np.testing.assert_array_equal(found, [False, True])
    np.testing.assert_array_equal(
        shows_nothing(MapEvidence(maps, torch.zeros(5, 3)), np.array([0, -1, 1])), [False, False]
    )


def test_images_of_noise_say_nothing_of_any_map(mixture: ToySet) -> None:
    noise = toy_set(400, noise=1e4, seed=11)
    maps = [blob_map(blob_positions()), 0.1 * blob_map(other_molecule())]
    own = [
        map_evidence(one, torch.zeros(400, 2), maps, SEARCH, lambda _: None).maps.amax(1).mean()
        for one in (mixture.images.take(torch.arange(400)), noise.images)
    ]
    assert float(own[0]) > 5.0
    assert float(own[1]) < SHOWS_NOTHING
