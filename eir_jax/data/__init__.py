"""Images: sources, augmentation, pipelines."""
