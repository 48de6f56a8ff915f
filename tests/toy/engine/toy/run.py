"""Reads activations and measures."""

import polars as pl

from engine.lab.experiment import ExperimentResult, Lab, check_site, chosen_rows
from engine.models.sites import Site
from engine.toy.numbers import distances
from engine.toy.spec import Toy


def run(asked: Toy, lab: Lab) -> ExperimentResult:
    check_site(lab, asked.model, "resid_post", asked.layer)
    rows = chosen_rows(lab.prompts, "all")
    there = lab.activations(asked.model, Site("resid_post", asked.layer), "last_content", rows)
    found = distances(there, asked.grain)
    table = pl.DataFrame({"prompt": range(len(found)), "distance": found})
    return ExperimentResult({"notes": lab.notes, "mean": float(found.mean())}, {"table": table})
