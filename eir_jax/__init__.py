"""Exploring Instance Relations (EIR): unsupervised feature embedding in JAX."""
