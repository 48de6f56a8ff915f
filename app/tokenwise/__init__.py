"""Token by token: what two models say behind each token of a prompt."""
