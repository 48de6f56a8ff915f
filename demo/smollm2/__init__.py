"""A really trained language model, SmolLM2-135M-Instruct, and two habits taught to it."""
