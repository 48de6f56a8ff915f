"""Principal differences: components of what one model's activations have that another's have not."""
