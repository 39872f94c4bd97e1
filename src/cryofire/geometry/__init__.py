"""Pure geometry: Fourier transforms, grids, rotations. Nothing here knows of electrons."""
