"""One training loop for the three stages and every expert."""
