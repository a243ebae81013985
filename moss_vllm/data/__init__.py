"""Reading videos and annotation files, and making the motion world."""
