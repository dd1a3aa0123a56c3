"""The renderer of drawn people: bodies, clothes, shapes and scenes."""
