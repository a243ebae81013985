"""What any command stands on."""
