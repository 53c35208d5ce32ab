"""Configurations as keys: what is equal gets one number, and what was met before gets it without being hashed again.

Hashing a layer of a model visits every setting below it. Neighbours in a search share nearly all of their objects, and
these never change, so an object is looked up by its place in memory first and by its value only when it is new.
"""

from itertools import count
from typing import Any


class Numbers:
    """Numbers of values. Past `most` of them it forgets, and counts on: an old number never means another value."""

    def __init__(self, most: int):
        self.most = most
        self._by_place: dict[int, tuple[Any, int]] = {}  # holds the object, so that no other takes its place
        self._by_value: dict[Any, int] = {}
        self._next = count()

    def __call__(self, value: Any) -> int:
        """`value` is immutable and hashable."""
        known = self._by_place.get(id(value))
        if known is not None:
            return known[1]
        if len(self._by_place) >= self.most:
            self._by_place.clear()
        if len(self._by_value) >= self.most:
            self._by_value.clear()
        number = self._by_value.get(value)
        if number is None:
            number = self._by_value[value] = next(self._next)
        self._by_place[id(value)] = value, number
        return number
