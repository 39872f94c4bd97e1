"""What a reconstruction says and how far to trust it: scores, alignment, latent space, states, report."""
