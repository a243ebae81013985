"""Generated data: the motion world, mini actions, and the sights that pre-train the miniature."""
