"""Frozen encoders of images and videos."""
