"""`python precompute.py report STORE`: the report without a browser."""

from __future__ import annotations

from pathlib import Path

from streamlit.logger import set_log_level
from tqdm import tqdm

from store.sources import to_write


def report(store: str, out: Path | None, pair: str | None, *, fit: bool = False) -> Path:
    """Writes the report of a store and returns the HTML file.

    Args:
        store: folder or URL. out: see `app.report.write.write`; None is "<store>-report" beside the store.
        pair: "target,source"; None for the store's usual pair.
        fit: fit the transport map at every site and block where that was not done before, in both directions.

    Raises:
        StoreError: no such store, no such models, or nowhere to write.
    """
    if out is not None:
        to_write(out, "A report")
    # Streamlit's caches warn, from their import on, of being used without a server, which is meant here.
    set_log_level("ERROR")
    from app.frame.opened import open_at
    from app.report.build import build, documents, fit_all, pair_selection
    from app.report.write import write

    opened = open_at(store)
    bare = Path(f"{opened.path.rstrip('/')}-report")
    place = out or (Path(bare.name) if "://" in opened.path else bare)
    with tqdm(unit="step", leave=False) as bar:

        def advance(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description(what[:60])

        selection = pair_selection(opened, pair)
        if fit:
            fit_all(opened, selection, advance)
        page, journal = documents(build(opened, selection, advance), advance)
    return write(place, page, journal)
