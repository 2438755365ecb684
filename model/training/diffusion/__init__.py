"""Define what diffusion networks learn: the loss of a prediction, the variational bound, and the likelihood."""
