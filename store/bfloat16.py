"""bfloat16 as its 16 bits: the upper half of a float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]


def pack(values: Array) -> Array:
    """Float32 rounded to the nearest bfloat16 (ties to even), as uint16 bits of the same shape.

    A float32 that is a bfloat16 already keeps every bit, the payload of a NaN included; another NaN
    stays a NaN of the same sign.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        bits: Array = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    odd = np.isnan(values)
    if odd.any():
        words = values.view(np.uint32)[odd]
        upper = (words >> 16).astype(np.uint16)
        bits[odd] = np.where(words & 0xFFFF, upper | 0x40, upper)
    return bits


def widen(bits: Array) -> Array:
    """uint16 bits of bfloat16 as float32, exactly."""
    words: Array = np.left_shift(bits, 16, dtype=np.uint32)
    return words.view(np.float32)


def bits_of(values: Array) -> Array:
    """Any accepted form of bfloat16 values (uint16 or int16 bits, ml_dtypes, float32/64) as uint16 bits."""
    if values.dtype == np.uint16:
        return values
    if values.dtype in (np.dtype(np.int16), np.dtype(ml_dtypes.bfloat16)):
        return values.view(np.uint16)
    return pack(values)
