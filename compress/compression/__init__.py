"""From a model and a request to a smaller model: what needs planning, surgery, runtimes and scores together."""
