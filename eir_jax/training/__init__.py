"""How a run is trained: the loop, and the step that it repeats."""
