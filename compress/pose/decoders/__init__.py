"""From network outputs to people."""
