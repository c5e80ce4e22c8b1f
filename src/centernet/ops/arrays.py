"""Conversion of JSON values to arrays."""

from collections.abc import Sequence

import numpy as np

MAX_LENGTH = 80  # characters of a value in a message


def numbers(values: Sequence, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return values of JSON as float64 of the shape (n, *shape).

    Raises:
        ValueError: values that are not numbers or have another form; the message names ``what``.
    """
    try:
        array = np.array(values)
    except ValueError:  # rows of different lengths
        array = np.zeros(0, dtype=object)
    if array.shape == (0,) and not values:
        array = array.reshape(0, *shape)
    if array.dtype == object or array.shape != (len(values), *shape):
        form = f"{' x '.join(map(str, shape))} numbers" if shape else "a number"
        raise ValueError(f"its {what} is not {form}: {shorten(values[0])}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"its {what} is not made of numbers: {shorten(values[0])}")
    return array.astype(np.float64)


def shorten(value) -> str:
    """Return the representation of a value, cut after ``MAX_LENGTH`` characters."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} in many others"
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."
