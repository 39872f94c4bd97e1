"""Models of the volume."""
