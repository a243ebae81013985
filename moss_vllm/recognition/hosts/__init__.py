"""Ways to make a video classifier of an image encoder, besides the ladder (Table 10d)."""
