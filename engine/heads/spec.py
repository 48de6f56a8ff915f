"""Which heads of one block carry the difference between two models: the description of the experiment."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from engine.lab.experiment import PatchExperiment

Substitute = Literal["head_z", "head_out"]
Vectors = Literal["literal", "raw"]


class HeadSubsets(PatchExperiment):
    """Heads of one block substituted alone, in sets, in pairs and left out; ranked on train.

    The ranking and the greedy sets are chosen on the train split; everything reported is on validation.

    Attributes:
        component: "head_z": the source's z goes through the target's output projection; "head_out": the
            source's whole contribution z W_O is put in, which needs a family without a norm behind it.
        vectors: "literal" as they are, or "raw": moment-matched to the target per dimension, on the train
            split.
        most: largest set of the ranked, greedy and random curves.
        draws: random sets of each size.
        pair_heads: pairs are run among all heads up to this many, else among the first of the train ranking.
    """

    runner: ClassVar[str] = "engine.heads.run:run"

    job: Literal["heads"] = "heads"
    component: Substitute
    vectors: Vectors = "literal"
    most: int = Field(default=8, ge=1, le=64)
    draws: int = Field(default=30, ge=20, le=1000)
    pair_heads: int = Field(default=16, ge=2, le=64)

    def describe(self) -> str:
        """One line for lists of jobs: "tuned ← base, heads of block 4 (head_out, literal) at decision"."""
        how = f"heads of block {self.layer} ({self.component}, {self.vectors})"
        return f"{self.target} ← {self.source}, {how} at {self.position}"
