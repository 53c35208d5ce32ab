"""What an entry of a sweep file stands for: named groups, alternatives, ranges and conditions become drafts of runs.

The order is that of the file, the last name fastest; of groups, what refers to them comes first. `search.sweepfile`
describes the formats.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from gptcore.yamlfile import Key

from .sweep_values import MOST, Wrong, clauses_of, holds, key_of, typed, values_of

GROUP_LISTS = ("named_static_groups", "named_variation_groups")
REFERENCES = ("named_group_static", "named_group_variations", "named_group_alternates")
BESIDE = ("named_group_settings", "parameter_groups")
RUN_NAME = "${RUN_NAME}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A run as a file says it: settings by name, not yet checked. `groups` are named groups that it is made of.

    `title` is what the classic runner calls it; `titled` are the settings that hold it.
    """

    settings: Mapping[Key, Any]
    groups: tuple[str, ...] = ()
    grouped: frozenset[str] = frozenset()  # settings that a static group says
    named: frozenset[str] = frozenset()  # settings that its name stands for
    common: frozenset[str] = frozenset()
    name: str = ""
    title: str = ""
    titled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """A draft whose settings may still hold several values each, and alternatives still to come, level by level."""

    draft: Draft
    levels: tuple[list[dict], ...] = ()


def classic(entry: dict, source: str, problems: list[str]) -> list[Draft]:
    """The runs of an entry, without those that have a problem. Wrong where it says nothing at all."""
    groups = _Groups(entry, problems)
    node = {key: value for key, value in entry.items() if key not in (*GROUP_LISTS, "common_group")}
    common = _common(entry, problems)
    known = set(_names(entry))

    def drafts() -> Iterator[Draft]:
        for part in groups.parts(node):
            for last in groups.unfold(part):
                try:
                    yield from combinations(last.draft, common, known)
                except Wrong as wrong:
                    problems.extend(wrong.lines)

    found = few(drafts(), source)
    if found and not any(draft.settings for draft in found):
        mark = next(iter(entry)).mark if entry else f"{source}:1"
        raise Wrong(f"{mark}: no setting in this entry; it would be a run of the defaults")
    return found


def entitled(draft: Draft, stem: str) -> Draft:
    """The draft with its title, also in place of `${RUN_NAME}`: its groups, then its values, with dashes.

    What groups and the common group say is not part of it, nor are values that hold the title themselves.
    """
    titled = frozenset(str(k) for k, v in draft.settings.items() if isinstance(v, str) and RUN_NAME in v)
    hidden = draft.common | draft.grouped | titled
    parts = [*dict.fromkeys(draft.groups), *(str(v) for k, v in draft.settings.items() if k not in hidden)]
    title = "-".join([stem, *parts])
    settings = {key: _filled(value, title) for key, value in draft.settings.items()}
    return replace(draft, settings=settings, title=title, titled=titled)


def _filled(value: Any, title: str) -> Any:
    if isinstance(value, str):
        return value.replace(RUN_NAME, title)
    if isinstance(value, dict):
        return {key: _filled(child, title) for key, child in value.items()}
    return [_filled(child, title) for child in value] if isinstance(value, list) else value


def few(drafts: Iterable[Draft], source: str | Path) -> list[Draft]:
    found = list(islice(drafts, MOST + 1))
    if len(found) > MOST:
        raise Wrong(f"{source}:1: more than {MOST:,} runs")
    return found


def _names(value: Any) -> Iterator[str]:
    """Everything that is a key somewhere."""
    if isinstance(value, dict):
        yield from map(str, value)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(child)


def _common(entry: dict, problems: list[str]) -> dict[Key, Any]:
    found = entry.get("common_group") or {}
    if not isinstance(found, dict):
        problems.append(f"{key_of(entry, 'common_group').mark}: common_group: expected a mapping of names to values")
        return {}
    common = {}
    for key, value in found.items():
        options = values_of(key, value)
        if len(options) != 1:
            problems.append(f"{key.mark}: common_group: {key} has {len(options)} values; what all runs share has one")
        common[key] = typed(key, options[0])
    return common


class _Groups:
    """The named groups of an entry, and what refers to them; a reference to none is a problem, and no run."""

    def __init__(self, entry: dict, problems: list[str]):
        self.problems = problems
        self.static, self.variation = (self._listed(entry, name) for name in GROUP_LISTS)

    @staticmethod
    def _listed(entry: dict, name: str) -> dict[str, dict]:
        found: dict[str, dict] = {}
        listed = entry.get(name) or []
        for group in listed if isinstance(listed, list) else [listed]:
            if not isinstance(group, dict) or not isinstance(group.get("named_group"), str):
                mark = next(iter(group)).mark if isinstance(group, dict) and group else key_of(entry, name).mark
                raise Wrong(f"{mark}: {name}: each entry is a mapping with the name of the group, named_group: NAME")
            if group["named_group"] in found:
                raise Wrong(f"{key_of(group, 'named_group').mark}: a second group {group['named_group']!r} in {name}")
            found[group["named_group"]] = {key: value for key, value in group.items() if key != "named_group"}
        return found

    def parts(self, node: dict, inside: tuple[str, ...] = ()) -> list[Part]:
        """What a mapping says: its own settings joined with those of the groups it names."""
        settings = {key: value for key, value in node.items() if key not in (*REFERENCES, *BESIDE)}
        part = Part(Draft(settings), self._levels(node))
        if (more := node.get("named_group_settings")) is not None:
            if not isinstance(more, dict):
                raise Wrong(f"{key_of(node, 'named_group_settings').mark}: named_group_settings: expected a mapping")
            part = join(part, Part(Draft(more)))
        found = [part]
        names = {name: self._names(node, name) for name in REFERENCES}
        if names["named_group_alternates"]:
            others = [p for name in names["named_group_alternates"] for p in self._resolve(name, inside)]
            found = [join(part, other) for other in others]
        for name in names["named_group_static"]:
            group = self._resolve(name, inside, "static")
            found = [join(one, other) for one in found for other in group]
        for name in names["named_group_variations"]:
            several = self._resolve(name, inside, "variation")
            found = [join(one, other) for one in found for other in several]
        return found

    def unfold(self, part: Part) -> Iterator[Part]:
        """The part with every choice of its alternatives."""
        if not part.levels:
            yield part
            return
        first, *rest = part.levels
        for node in first:
            try:
                found = [join(Part(part.draft), sub) for sub in self.parts(node)]
            except Wrong as wrong:
                self.problems.extend(wrong.lines)
                continue
            for joined in found:
                yield from self.unfold(replace(joined, levels=(*joined.levels, *rest)))

    @staticmethod
    def _names(node: dict, reference: str) -> list[Key]:
        said = node.get(reference)
        listed = [] if said is None else said if isinstance(said, list) else [said]
        if any(not isinstance(name, str) for name in listed):
            raise Wrong(f"{key_of(node, reference).mark}: {reference}: expected names of groups, not {said!r}")
        return [Key(name, key_of(node, reference).mark) for name in listed]

    @staticmethod
    def _levels(node: dict) -> tuple[list[dict], ...]:
        said = node.get("parameter_groups")
        listed = [] if said is None else said if isinstance(said, list) else [said]
        if any(not isinstance(group, dict) for group in listed):
            raise Wrong(f"{key_of(node, 'parameter_groups').mark}: parameter_groups: expected mappings, not {said!r}")
        return (listed,) if listed else ()

    def _resolve(self, name: Key, inside: tuple[str, ...], kind: str = "") -> list[Part]:
        where = {"static": self.static, "variation": self.variation, "": self.static | self.variation}[kind]
        if name not in where:
            known = ", ".join(where) or "none"
            self.problems.append(f"{name.mark}: no {kind + ' ' if kind else ''}group {str(name)!r} (known: {known})")
            return []
        if name in inside:
            raise Wrong(f"{name.mark}: group {str(name)!r} refers to itself: {' > '.join((*inside, name))}")
        found = self.parts(where[name], (*inside, str(name)))
        if name not in self.static or kind == "variation":
            return found
        if not found:  # what it refers to is missing
            return []
        if len(found) != 1:
            raise Wrong(f"{name.mark}: group {str(name)!r} is static and stands for {len(found)} alternatives")
        draft = found[0].draft
        named = replace(draft, groups=(*draft.groups, str(name)), grouped=draft.grouped | set(map(str, draft.settings)))
        return [replace(found[0], draft=named)]


def join(a: Part, b: Part) -> Part:
    """Both together. Wrong where they contradict each other."""
    x, y = a.draft, b.draft
    for key, value in y.settings.items():
        if key in x.settings and x.settings[key] != value:
            first = next(k for k in x.settings if k == key)
            raise Wrong(f"{key.mark}: {key} is {value!r} here and {x.settings[key]!r} at {first.mark}")
    draft = Draft(
        {**x.settings, **y.settings}, (*x.groups, *y.groups), x.grouped | y.grouped, x.named | y.named,
        x.common | y.common, x.name or y.name,
    )  # fmt: skip
    return Part(draft, (*a.levels, *b.levels))


def combinations(draft: Draft, shared: Mapping[Key, Any], known: set[str]) -> Iterator[Draft]:
    """Every combination of the values of a draft, then of the conditional ones, in the order in which they stand.

    `shared` is the common group; conditions may be on the names in `known`.
    """
    plain: dict[Key, list[Any]] = {}
    rules: list[tuple[Key, list[dict[Key, Any]], list[Any]]] = []
    wrong: list[str] = []
    for key, value in draft.settings.items():
        try:
            if isinstance(value, dict) and "conditions" in value:
                rules.append((key, clauses_of(key, value, known), values_of(key, value["options"])))
            else:
                plain[key] = values_of(key, value)
        except Wrong as error:
            wrong += error.lines
    for key in shared:
        if key in plain and [typed(key, v) for v in plain[key]] != [shared[key]]:
            own = next(k for k in plain if k == key)
            wrong.append(f"{own.mark}: {key} is part of common_group ({key.mark}) and must not be said again")
    if wrong:
        raise Wrong("\n".join(wrong))
    for values in product(*plain.values()):
        found = [{**shared, **{key: typed(key, value) for key, value in zip(plain, values, strict=True)}}]
        for key, clauses, options in rules:
            held = [(said, any(holds(clause, said) for clause in clauses)) for said in found]
            found = [
                one
                for said, holds in held
                for one in ([{**said, key: typed(key, option)} for option in options] if holds else [said])
            ]
        for settings in found:
            yield replace(draft, settings=settings, common=frozenset(map(str, shared)))
