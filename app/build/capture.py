"""One unit of a model's prompts: captured, and committed to the store."""

from __future__ import annotations

from collections.abc import Callable

from app.build.prepare import Prepared
from engine.models.loading import LoadedModel
from engine.passes.capture import capture_unit
from store.writer import StoreWriter

__all__ = ["capture_into"]


def capture_into(
    prepared: Prepared,
    writer: StoreWriter,
    lm: LoadedModel,
    unit: int,
    warn: Callable[[str], None],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Captures one unit of one model and commits it; `warn` is told of batches that did not fit."""
    capture = prepared.study.capture
    values = capture_unit(
        lm,
        prepared.token_ids(lm.name),
        list(writer.plan.prompts_of(unit)),
        prepared.positions[lm.name],
        components=capture.components,
        layers=capture.blocks(lm.taps.n_layers),
        batch_tokens=capture.batch_tokens,
        on_halved=lambda n, half: warn(f"{lm.name}: {n} prompts did not fit into memory, trying {half}"),
        names=prepared.table["id"].to_list(),
        advance=advance,
    )
    writer.commit(lm.name, unit, values)
