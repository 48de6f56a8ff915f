"""What it says."""


def toy_title(mean: float) -> str:
    return f"Prompts lie {'far' if mean > 1 else 'near'}"
