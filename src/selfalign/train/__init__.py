"""Training: one step, one loop, checkpoints that resume exactly. What is trained for is an argument."""
