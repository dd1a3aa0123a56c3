"""What a layer can become: one class and one file for each form, found by name in the registry."""
