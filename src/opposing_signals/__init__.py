"""See which training examples drive the optimization of a neural network."""
