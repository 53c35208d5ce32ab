"""One kind put in the place of what a configuration has: how kinds are compared with a baseline, one at a time."""

import copy
from collections.abc import Iterator
from typing import Any

from ..config import GPTConfig
from ..loader import from_dict
from ..model import declare
from ..ops import Pass
from ..registry import SLOTS, Strict, kinds, lookup, slot_of


def every_kind() -> Iterator[tuple[str, str]]:
    """(slot, kind) of everything registered."""
    return ((slot, kind) for slot in SLOTS for kind in kinds(slot))


def with_kind(model: dict[str, Any], slot: str, kind: str) -> dict[str, Any]:
    """A copy of a nested `model` section in which every place that always holds a kind of `slot` holds `kind`.

    Knobs that the new kind has too are kept. Optional places (a norm of queries, a softmax as output) stay as they are.
    """
    model = copy.deepcopy(model)
    _replace(model, GPTConfig, slot, kind)
    return model


def _replace(section: dict[str, Any], cls: type[Strict], slot: str, kind: str) -> None:
    for name, info in cls.model_fields.items():
        place = slot_of(info)
        if place is None or place.default is None:
            continue
        given = section.get(name, {})
        given = {"kind": given} if isinstance(given, str) else given
        if place.name == slot:
            fields = lookup(slot, kind).Config.model_fields
            section[name] = {"kind": kind, **{k: v for k, v in given.items() if k in fields and k != "kind"}}
            continue
        inner = dict(given)
        _replace(inner, lookup(place.name, place.kind_of(given)).Config, slot, kind)
        if inner != given:
            section[name] = inner


def parameters(model: dict[str, Any]) -> int:
    """Distinct parameters of a nested `model` section, whose `vocab_size` is known."""
    config = from_dict({"model": model}).model
    return sum(weight.numel for weight in declare(config, Pass("prefill", 1, 1, 1)).weights().values())


def of_equal_size(model: dict[str, Any], target: int, step: int) -> dict[str, Any]:
    """The section with the `n_embd`, a multiple of `step`, that brings its parameters closest to `target`."""
    low, high = 1, 2
    while parameters({**model, "n_embd": high * step}) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        below = parameters({**model, "n_embd": middle * step}) < target
        low, high = (middle, high) if below else (low, middle)
    widths = [{**model, "n_embd": n * step} for n in (low, high)]
    return min(widths, key=lambda candidate: abs(parameters(candidate) - target))
