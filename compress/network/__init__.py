"""Reading networks without changing them: layers and costs."""
