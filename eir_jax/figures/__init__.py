"""What is drawn: neighbours, maps, curves, and the report that holds them."""
