"""What tests, and compares tests."""
