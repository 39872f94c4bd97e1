"""Settings of a run: frozen dataclasses, one for each stage.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class PrepareSettings:
    """How images are prepared.

    Attributes
    ----------
    box : int or None
        Working box; by default that of the images, at most `largest_box`.
    largest_box : int
        Larger images are cropped in Fourier space to this box.
    """

    box: int | None = None
    largest_box: int = 128


@dataclass(frozen=True)
class SearchSettings:
    """How the search runs.

    Attributes
    ----------
    images : int
        Size of the subset that is searched.
    steps, most_steps : int
        Updates of the map in one start, and most of them where images say so little that their poses become clear slowly.
    least_images, most_images : int
        Images drawn for each update: the least where one image says much, the most where it says little.
    rotations : int
        Size of the rotation grid (4 608: 14.8° apart).
    first_shell, last_shell : int
        Resolution limits at the first and the last step.
    disorder : float
        The first temperature, which divides the log-likelihood, is the one at which the posterior of an image fills
        this fraction of all poses: the annealing then starts equally hot whatever the signal-to-noise ratio.
    annealed : float
        Fraction of the steps over which the temperature falls geometrically to 1.
    shift_radius, shift_spacing : float
        Largest disc of shifts tried around each image's centre, and their spacing, as fractions of the box; well-centred
        particles get a smaller disc. Shifts are taken to be normal, the disc to hold nearly all.
    update_spacing : float
        The same for updates of the map, whose rotations are too far apart for finer shifts to matter.
    mask_radius : float
        Radius of the spherical mask as a fraction of the box.
    held_out : int
        Images kept aside to judge a start.
    least_starts, most_starts : int
        Starts that always run, and where to stop when no two agree.
    agreement : float
        Two starts agree when their held-out gains differ by less than this fraction, or when they see the images alike.
    """

    images: int = 5000
    steps: int = 60
    most_steps: int = 200
    least_images: int = 300
    most_images: int = 1200
    rotations: int = 4608
    first_shell: int = 5
    last_shell: int = 12
    disorder: float = 0.5
    annealed: float = 0.15
    shift_radius: float = 0.11
    shift_spacing: float = 0.0235
    update_spacing: float = 0.047
    mask_radius: float = 0.36
    held_out: int = 384
    least_starts: int = 2
    most_starts: int = 6
    agreement: float = 0.03


@dataclass(frozen=True)
class SpeciesSettings:
    """How particles of several species are told apart.

    Attributes
    ----------
    unexplained : float
        Several maps are tried where one structure leaves more signal than this unexplained, as a fraction of what it explains.
    unexplained_in_group : float
        The same for images that were told apart from others: where kinds are mixed, two of them are likelier to share a map.
    maps : int
        Maps of that search.
    alike : float
        Two maps are of one species when images of the one keep this fraction of their gain over a sphere under the other, in the
        mean of both ways.
    judged : int
        Images kept aside to compare maps.
    least : int
        Fewest particles that are a species of their own.
    """

    unexplained: float = 0.5
    unexplained_in_group: float = 0.2
    maps: int = 6
    alike: float = 0.4
    judged: int = 800
    least: int = 300


@dataclass(frozen=True)
class RefineSettings:
    """How poses and maps are refined.

    Attributes
    ----------
    passes : int
        Most passes over the images.
    steps : int
        Gauss–Newton steps of each image in a pass.
    shells_per_pass, growth : int, float
        From pass to pass the resolution limit may grow by so many shells or by this factor, whichever is more.
    lookahead : int
        Shells back-projected beyond the limit, at least as many as it may grow by.
    tolerance : float
        Converged when the limit has stopped growing and the median rotation changes by less than this fraction of a shell at its
        edge, 1 / shell radians.
    mask_radius : float
        Radius of the spherical mask as a fraction of the box.
    images : int
        Most images from which the consensus and the latent space are found; the others get their poses from the encoder.
    """

    passes: int = 16
    steps: int = 1
    shells_per_pass: int = 3
    growth: float = 1.25
    lookahead: int = 6
    tolerance: float = 0.06
    mask_radius: float = 0.44
    images: int = 20_000

    def next_shell(self, shell: int) -> int:
        """Largest resolution limit that may follow a limit."""
        return max(shell + self.shells_per_pass, round(self.growth * shell))

    def seen(self, shell: int) -> int:
        """Shell up to which a pass with a resolution limit back-projects."""
        return max(shell + self.lookahead, self.next_shell(shell))


@dataclass(frozen=True)
class SubspaceSettings:
    """How the latent space is opened.

    Attributes
    ----------
    images : int
        Most images used.
    components, most_components : int
        Components tried first; doubled while all of them are kept, up to the most.
    steps, block : int
        Steps of the Lanczos method that finds where they begin, and vectors in each.
    first_power : float
        Power that components are expected to have in every shell as a part of the mean's, before the halves agree on anything.
    passes : int
        Expectation–maximisation passes of each try that follow.
    refine_passes : int
        Most passes of poses and latents together that follow.
    shell_fraction : float
        Resolution limit of components as a fraction of the largest shell; nor is it finer than that of the mean.
    significance, least_gain : float
        Standard errors, and nats per image, by which another component must raise the held-out evidence to be kept.
    path_components, path_passes, path_refine_passes : int
        Components tried for a continuous motion once its path is known, passes that fit them, and passes of poses and
        latents together that follow.
    """

    images: int = 6000
    components: int = 4
    most_components: int = 8
    steps: int = 8
    block: int = 2
    first_power: float = 0.1
    passes: int = 3
    refine_passes: int = 5
    shell_fraction: float = 0.65
    significance: float = 3.0
    least_gain: float = 0.01
    path_components: int = 8
    path_passes: int = 3
    path_refine_passes: int = 3

    def limit(self, resolved: int, max_shell: int) -> int:
        """Last shell in which components are looked for in images whose mean is known up to the shell `resolved`."""
        return max(min(resolved, round(self.shell_fraction * max_shell)), 1)


@dataclass(frozen=True)
class StateSettings:
    """How states are told apart and their maps made.

    Attributes
    ----------
    joint_passes : int
        Passes of all images against the joint model before the latents are read.
    path_points : int
        Maps along the path through the latent space of a continuous motion.
    """

    joint_passes: int = 1
    path_points: int = 6


@dataclass(frozen=True)
class FieldSettings:
    """Size of the neural field, and how it learns.

    Attributes
    ----------
    coarsest : int
        Points along an axis of the coarsest lattice of features; each further one is twice as fine, the last as fine as the box.
    features : int
        Features of each lattice for every basis density.
    hidden, layers : int
        Width of the network and number of its residual layers.
    radius : float
        Radius of the spherical support as a fraction of the box.
    steps : int
        Steps of the network towards the whitened closed-form maps.
    exact_steps : int
        Conjugate-gradient steps of the voxels on the likelihood itself that follow, and each time the sums are new.
    learning_rate : float
        Largest learning rate of the features.
    """

    coarsest: int = 8
    features: int = 2
    hidden: int = 64
    layers: int = 1
    radius: float = 0.44
    steps: int = 30
    exact_steps: int = 6
    learning_rate: float = 0.02


@dataclass(frozen=True)
class PublishedSettings:
    """How the recipe ``cryofire-2022`` learns: the method of the paper, from random weights and without a search.

    Attributes
    ----------
    images : int
        Images presented in all, each image counted as often as it is seen.
    seconds : float or None
        Stop after this time even if fewer were presented.
    pose_only_images : int
        Presented while the conformation is drawn at random and only poses and decoder learn.
    marching_images : int
        Presented while the resolution limit grows from the first to the last shell.
    first_shell : int
        Resolution limit at the start.
    last_shell : int or None
        Resolution limit at the end; by default the largest shell of the box.
    batch : int
        Images of one step.
    learning_rate : float
        Of Adam.
    components : int
        Coordinates of the conformation.
    channels : int
        Width of the encoder's first convolutions, a multiple of 8.
    hidden, layers : int
        Width of encoder heads and decoder, and residual layers of the decoder.
    features : int
        Random Fourier features of the decoder.
    """

    images: int = 3_000_000
    seconds: float | None = None
    pose_only_images: int = 500_000
    marching_images: int = 1_500_000
    first_shell: int = 5
    last_shell: int | None = None
    batch: int = 64
    learning_rate: float = 1e-4
    components: int = 8
    channels: int = 32
    hidden: int = 256
    layers: int = 3
    features: int = 96


PUBLISHED = "cryofire-2022"
RECIPES = ("default", PUBLISHED)
"""Recipes by name: this package's own, and the published method as a baseline."""


@dataclass(frozen=True)
class EncoderSettings:
    """Shape of the encoder.

    Attributes
    ----------
    max_shell : int
        Largest shell it looks at.
    angles, turns, glance_turns : int
        Angles of a polar image; in-plane angles of the coarse cells, which divide them; and those of a glance at low resolution.
    directions, fine_directions, glance_directions : int
        Viewing directions of the coarse cells, of the fine cells, and of a glance.
    width, blocks : int
        Of the coarse network.
    hidden : int
        Width of the fine network.
    modes : int
        Modes of the posterior.
    """

    max_shell: int = 16
    angles: int = 64
    turns: int = 32
    glance_turns: int = 24
    directions: int = 256
    fine_directions: int = 768
    glance_directions: int = 128
    width: int = 128
    blocks: int = 2
    hidden: int = 256
    modes: int = 2


@dataclass(frozen=True)
class AmortiseSettings:
    """How the encoder is taught.

    Attributes
    ----------
    steps : int
        Updates of the weights.
    batch : int
        Rendered images of each update.
    real : int
        Real images of each update.
    rate : float
        Largest learning rate.
    half_passes : int
        Passes of all images in halves, where the consensus was found from a part of them.
    """

    steps: int = 110
    batch: int = 192
    real: int = 64
    rate: float = 2e-3
    half_passes: int = 2


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Attributes
    ----------
    seed : int
        Seed of everything random.
    recipe : str
        One of `RECIPES`.
    poses : str or None
        Table of known poses of the same particles: they are kept, and only conformations and maps are learnt. None: poses are
        found.
    prepare : PrepareSettings
    search : SearchSettings
    species : SpeciesSettings
    refine : RefineSettings
    subspace : SubspaceSettings
    encoder : EncoderSettings
    amortise : AmortiseSettings
    states : StateSettings
    published : PublishedSettings
    field : FieldSettings
    """

    seed: int = 0
    recipe: str = "default"
    poses: str | None = None
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    species: SpeciesSettings = field(default_factory=SpeciesSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    amortise: AmortiseSettings = field(default_factory=AmortiseSettings)
    states: StateSettings = field(default_factory=StateSettings)
    published: PublishedSettings = field(default_factory=PublishedSettings)
    field: FieldSettings = field(default_factory=FieldSettings)  # the last: its name hides the function

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        return asdict(self)
