"""Weight steering α: a model with W + αΔW, and what that does to its behaviour and to everything else."""

from app.frame import page
from app.weight_steering.analysis import WEIGHT_STEERING

page.show(WEIGHT_STEERING)
