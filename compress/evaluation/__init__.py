"""Finding people with a runner, and scoring them."""
