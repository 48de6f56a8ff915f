"""Which parameters of two models are compared: by places in the text model, and by token strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from engine.models.families import FAMILIES
from engine.weights.shared_rows import SharedRows, shared_rows

__all__ = ["Names", "matched", "rows_shared", "told_of_rows", "unmatched"]


class Names:
    """What of a model's parameters is known without their values.

    Attributes:
        shapes: name -> shape, each parameter once.
        aliases: further names of parameters that are shared (tied embeddings).
        decoder: path of the decoder in a model of a known family, else None.
        places: place in the text model -> name, of the decoder's and the unembedding's parameters.
        by_token: parameters with a row per token: of the embedding and the unembedding.
        vocabulary: token string -> row of these, None where it isn't known.
    """

    def __init__(self, model: nn.Module, vocabulary: Mapping[str, int] | None = None) -> None:
        own = dict(model.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
        every = (name for name, _ in model.named_parameters(remove_duplicate=False))
        self.aliases = frozenset(every) - own.keys()
        family = FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", None)))
        self.decoder = None if family is None else family.decoder
        self.places = {} if self.decoder is None else _places(model, self.decoder)
        ends = {id(parameter) for end in _ends(model) for parameter in end.parameters()}
        self.by_token = frozenset(name for name, parameter in own.items() if id(parameter) in ends)
        self.vocabulary = vocabulary

    def compared(self, other: Names) -> Iterable[str]:
        """The parameters that a comparison with another model is about, in order.

        A checkpoint with a vision tower has its decoder inside a wrapper, a fine-tune of its text model alone
        has not: only the text model is compared then.
        """
        return self.shapes if self.decoder == other.decoder else self.places.values()


def matched(base: Names, tuned: Names) -> dict[str, str]:
    """Name of a parameter of the second model -> the first one's name for its place in the text model.

    Where both keep their decoder at the same place, equal names are equal places.
    """
    if base.decoder == tuned.decoder:
        return {name: name for name in tuned.shapes}
    return {name: base.places.get(place, name) for place, name in tuned.places.items()}


def unmatched(base: nn.Module | Names, tuned: nn.Module | Names) -> dict[str, str]:
    """Parameters that have no counterpart of the same shape in the other model: name -> what is wrong.

    Names are the first model's, see `matched`. A parameter that one model shares under two names and the
    other doesn't counts as unmatched too. Matrices with a row per token may be of any length where both
    vocabularies are known, and have strings in common.
    """
    one, other = (side if isinstance(side, Names) else Names(side) for side in (base, tuned))
    ours = {name: one.shapes[name] for name in one.compared(other)}
    places = {name: own for own, name in matched(one, other).items()}
    theirs = {name: other.shapes[own] for name, own in places.items()}
    found = {}
    for name, shape in ours.items():
        if name not in theirs:
            found[name] = "missing"
            continue
        rows = rows_shared(one, other, name, places[name])
        if rows is not None and not len(rows.base):
            found[name] = "no token string is in both vocabularies"
        elif rows is None and theirs[name] != shape:
            found[name] = f"shape {theirs[name]} instead of {shape}"
    for name in theirs:
        if name not in ours:
            found[name] = "tied to another one in the first model" if name in one.aliases else "additional"
    return found


def rows_shared(base: Names, tuned: Names, name: str, theirs: str) -> SharedRows | None:
    """How two parameters with a row per token are compared; None where it is number by number.

    Args:
        name, theirs: of the first and of the second model.
    """
    if name not in base.by_token or theirs not in tuned.by_token:
        return None
    if base.vocabulary is None or tuned.vocabulary is None:
        return None
    ours, others = base.shapes[name], tuned.shapes[theirs]
    if ours[1:] != others[1:]:
        return None
    return shared_rows(base.vocabulary, tuned.vocabulary, (ours[0], others[0]))


def told_of_rows(base: Names, tuned: Names) -> str | None:
    """In words, what of a vocabulary that is another than the base's is compared.

    None for the same vocabulary, and for models whose other tensors don't match.
    """
    if unmatched(base, tuned):
        return None
    pairs = {name: own for own, name in matched(base, tuned).items()}
    for name in base.compared(tuned):
        found = rows_shared(base, tuned, name, pairs[name]) if name in pairs else None
        if found is not None:
            return f"the embedding is {found.sentence()}"
    return None


def _ends(model: Any) -> list[nn.Module]:
    """The embedding and the unembedding of a Hugging Face model, as far as it has them."""
    found = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    return [end for end in found if end is not None]


def _places(model: Any, decoder: str) -> dict[str, str]:
    head, found = model.get_output_embeddings(), {}
    ends = {id(value) for value in head.parameters()} if head is not None else set()
    for name, value in model.named_parameters():
        if name.startswith(f"{decoder}."):
            found["decoder." + name.removeprefix(f"{decoder}.")] = name
        elif id(value) in ends:
            found["head." + name.rpartition(".")[2]] = name
    return found
