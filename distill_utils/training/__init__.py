"""How any model learns from pairs: the losses, an epoch, a student's whole training."""
