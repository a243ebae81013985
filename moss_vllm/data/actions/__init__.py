"""Action-recognition datasets as they are published."""
