"""Action recognition with classifiers."""
