"""Action-recognition datasets, read from the files as they are published."""
