"""Action recognition: video classifiers, their training and their tests."""
