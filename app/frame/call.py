"""Tables as calls: functions of (store, plain values), kept while their store is open, and printed as code.

No Streamlit here: a notebook calls the same functions, and what it is shown is the call that made the table.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from itertools import filterfalse
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, ref

import polars as pl

from store.reader import Store

P = ParamSpec("P")
R = TypeVar("R")

Progress = Callable[[str], Callable[[int, int], None]]
"""What a slow computation says it does gives what it tells (done, total) steps."""


def quiet(_text: str) -> Callable[[int, int], None]:
    """Progress that nobody watches."""
    return lambda done, total: None


busy: Callable[[str], AbstractContextManager[Any]] = nullcontext
"""What surrounds a slow computation, told what it does; the dashboard puts in what shows it."""


def kept(saying: str = "", most: int = 64) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The one cache: a function of (store, plain values) answers an open store once.

    Results are shared and must not be changed; they go when the store does. Who asks what is being computed
    waits for it; an error is no answer. Arguments that are functions only watch: they make no other question.

    Args:
        saying: what is shown while it computes, nothing by default.
        most: results of one store that are kept, the latest used.
    """

    def keeping(function: Callable[P, R]) -> Callable[P, R]:
        signature, lock = inspect.signature(function), threading.Lock()
        stores: WeakKeyDictionary[Store, OrderedDict[tuple[Any, ...], Future[R]]] = WeakKeyDictionary()

        @functools.wraps(function)
        def asked(*given: P.args, **named: P.kwargs) -> R:
            bound = signature.bind(*given, **named)
            bound.apply_defaults()
            store, *values = bound.arguments.values()
            key, own = tuple(map(_key, filterfalse(callable, values))), Future[R]()
            while True:
                with lock:
                    found = stores.setdefault(store, OrderedDict())
                    answer = found.setdefault(key, own)
                    found.move_to_end(key)
                    if len(found) > most:
                        found.popitem(last=False)
                if answer is own:
                    break
                if answer.exception() is None:
                    return answer.result()
            try:
                with busy(saying) if saying else nullcontext():
                    own.set_result(function(*given, **named))
            except BaseException as error:
                with lock:
                    found.pop(key, None)
                own.set_exception(error)
                raise
            return own.result()

        return asked

    return keeping


def _key(value: Any) -> Any:
    """A value as part of a key; another store is not held by what is kept with this one."""
    return ref(value) if isinstance(value, Store) else value


class Call:
    """A table as what it is asked by: a function, a store, and plain values by name.

    The values are texts, numbers, None, tuples and dicts of these, or other stores.
    """

    def __init__(self, function: Callable[..., pl.DataFrame], store: Store, **values: Any) -> None:
        self.function, self.store, self.values = function, store, values

    @functools.cached_property
    def table(self) -> pl.DataFrame:
        """What the function returns."""
        return self.function(self.store, **self.values)

    @property
    def code(self) -> str:
        """Notebook lines that make the very same call; they end with `table`."""
        name = self.function.__name__
        lines = [
            f"from {self.function.__module__} import {name}",
            f"from {Store.__module__} import {Store.__name__}",
            "",
            f"store = {_written(self.store)}",
            f"table = {name}(",
            "    store,",
            *(f"    {name}={_written(value)}," for name, value in self.values.items()),
            ")",
        ]
        return "\n".join(lines)


def _written(value: Any) -> str:
    return f"{Store.__name__}({str(value.path)!r})" if isinstance(value, Store) else repr(value)
