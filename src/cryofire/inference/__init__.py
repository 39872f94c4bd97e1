"""From images to poses, latents and maps."""
