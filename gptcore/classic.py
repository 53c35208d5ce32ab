"""The flags of the classic fork, every one: what each means here, or why nothing here could be meant by it.

`classic_flags.yaml` and `classic_refused.yaml` hold the list: flags whose name is a flat name here (`here`, with their
defaults there), flags that other names or values stand for (`translated`, `places`), and flags without a counterpart
(`refused`). `translating.py` acts on it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .yamlfile import parse, parse_value

FILES = [Path(__file__).with_name(name) for name in ("classic_flags.yaml", "classic_refused.yaml")]


@dataclass(frozen=True)
class Places:
    """A yes/no for all places that are rounded, one for each, and the bits of all; here the bits say all of it."""

    everywhere: str
    bits: str
    each: tuple[str, ...]

    def own_bits(self, place: str) -> str:
        """The name of the bits of one place."""
        return f"{place}_bits"


@dataclass(frozen=True)
class Flags:
    """The list. The keys of `here`, `translated`, `places` and `refused` are all flags, each in one of them."""

    source: str
    here: dict[str, Any]
    translated: dict[str, dict[str, Any]]
    groups: tuple[Places, ...]
    together: list[dict[str, dict[str, Any]]]
    refused: dict[str, str]
    remarks: dict[str, str]

    @property
    def places(self) -> dict[str, Places]:
        """Each yes/no of a group."""
        return {flag: group for group in self.groups for flag in (group.everywhere, *group.each)}

    def knows(self, name: str) -> bool:
        """Whether it is a flag that has no meaning here by its own name."""
        return name in self.translated or name in self.places or name in self.refused

    def __iter__(self):
        yield from (*self.here, *self.translated, *self.places, *self.refused)


@cache
def flags() -> Flags:
    """The list, read once. ValueError where it contradicts itself."""
    problems: list[str] = []
    content: dict[str, Any] = {}
    for file in FILES:
        content |= parse(file.read_text(encoding="utf-8"), file.name, problems) or {}
    if problems:
        raise ValueError("\n".join(problems))
    groups = tuple(Places(name, bits, tuple(each)) for name, (bits, *each) in content["places"].items())
    pairs = [(str(flag), group["why"]) for group in content["refused"] for flag in group["flags"]]
    remarks = {str(flag): remark["what"] for remark in content["remarks"] for flag in remark["flags"]}
    found = Flags(
        content["source"], content["here"], content["translated"], groups, content["together"], dict(pairs), remarks
    )
    names = [*found.here, *found.translated, *found.places, *(flag for flag, _ in pairs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"flags in two places: {', '.join(twice)}")
    return found


def classic_flag(name: str, queue: list[str]) -> tuple[str, Any] | None:
    """(flag, value) of `--name` and the values that follow it, which leave the queue; None if it is no such flag.

    As there: nothing behind it means yes, `no-` in front of it means no, several words are a list.
    """
    found = flags()
    if not found.knows(name):
        name = name[3:] if name.startswith(("no-", "no_")) else ""
        return (name, False) if found.knows(name) else None
    words = []
    while queue and not queue[0].startswith("--") and "=" not in queue[0]:
        words.append(queue.pop(0))
    values = [parse_value(word.lower() if word in ("True", "False") else word) for word in words]
    return name, True if not values else values[0] if len(values) == 1 else values


__all__ = ["FILES", "Flags", "Places", "classic_flag", "flags"]
