"""Where images come from, and how a batch of views is made of them."""
