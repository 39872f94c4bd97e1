"""Particle images of known molecules in known poses, for tests, demonstrations and benchmarks."""
