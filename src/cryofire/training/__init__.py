"""A run from particle table to report: stages in order, their checkpoints, and the folder they leave."""
