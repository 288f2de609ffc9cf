"""How an embedding is judged: neighbours, linear probe, retrieval, health."""
