"""Training: one step, one loop, checkpoints that resume exactly. Objectives are arguments, so nothing here knows of rehearsal."""
