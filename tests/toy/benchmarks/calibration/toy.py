"""How often its title is wrong."""

from app.toy.words import toy_title
from benchmarks.calibration.entry import Entry

ROOM = "app.toy"
ENTRIES = (
    Entry(
        "Toy",
        "far",
        lambda mean: toy_title(mean).endswith("far"),
        {"they lie at one point": lambda rng: float(rng.uniform())},
        lambda rng: 1.0 + float(rng.uniform(0.1, 1.0)),
    ),
)
CONCLUDES = {"words.toy_title": ("Toy",)}
