"""What one run is: its state, optimiser, checkpoints, records and folder."""
