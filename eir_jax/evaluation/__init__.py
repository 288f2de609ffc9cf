"""Evaluation of embeddings: nearest neighbours, kNN, retrieval."""
