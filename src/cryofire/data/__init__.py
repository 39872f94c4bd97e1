"""Particle tables, lazy image stacks, checks and export."""
