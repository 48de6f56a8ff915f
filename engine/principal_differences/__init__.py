"""Principal directions of the difference of two models' activations on the same prompts."""
