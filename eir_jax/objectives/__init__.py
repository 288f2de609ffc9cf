"""What is learnt: the equations, and the memory that they need."""
