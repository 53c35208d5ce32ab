"""Slots and kinds. A slot is a folder of this package; a kind is one file in it that registers itself.

    @register("softmax", "consmax")
    class ConSmax(Softmax):
        class Config(KindConfig):
            initial_beta: float = 0.0

A configuration field `softmax: KindConfig = slot("softmax", default="softmax")` holds any kind of that slot.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from .errors import UserError

SLOTS = ("attention", "softmax", "norm", "activation", "mlp", "position", "linear", "block", "residual")


class Strict(BaseModel):
    """Base of every configuration class: unknown keys and lossy conversions are errors, instances never change.

    Schemas are built on first use, when all kinds can be imported.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True, allow_inf_nan=False)


class KindConfig(Strict):
    """Knobs of one kind; `register` adds the `kind` field."""


class Problem(NamedTuple):
    """An impossible combination: the field at fault, relative to the configuration that declares it, and why."""

    field: str
    message: str


_kinds: dict[str, dict[str, Any]] = {slot: {} for slot in SLOTS}
_by_config: dict[type, Any] = {}
# Flat names that select a kind by being true, e.g. use_rotary_embeddings: (slot, kind) when true, kind when false.
_switches: dict[str, tuple[str, str | None, str | None]] = {}


def register(slot: str, kind: str, *, on: tuple[str, ...] = (), off: tuple[str, ...] = ()):
    """Class decorator. `on`/`off` name boolean flat flags that choose this kind when true/false.

    A kind that can hold several others of its slot has a class method `joined(kinds)`: the kind of each of its fields,
    by name, so that all of `kinds` are in force and nothing else is; None when it cannot. Flags that choose several
    kinds of the slot together choose it.
    """

    def decorate(cls: type) -> type:
        if kind in _kinds[slot]:
            raise ValueError(f"{slot} kind {kind!r} is registered twice: {_kinds[slot][kind]} and {cls}")
        own = cls.__dict__.get("Config", KindConfig)
        cls.Config = create_model(  # type: ignore[attr-defined]
            f"{cls.__name__}Config", __base__=own, __module__=cls.__module__, __doc__=cls.__doc__,
            kind=(Literal[kind], kind),  # type: ignore[arg-type]
        )  # fmt: skip
        cls.slot, cls.kind = slot, kind  # type: ignore[attr-defined]
        _kinds[slot][kind] = cls
        _by_config[cls.Config] = cls  # type: ignore[attr-defined]
        for name in on:
            _switches[name] = (slot, kind, _switches.get(name, (slot, None, None))[2])
        for name in off:
            _switches[name] = (slot, _switches.get(name, (slot, None, None))[1], kind)
        return cls

    return decorate


@cache
def _discover(slot: str) -> None:
    package = importlib.import_module(f"gptcore.{slot}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"gptcore.{slot}.{module.name}")


def kinds(slot: str) -> dict[str, Any]:
    """Every kind of a slot by name, sorted. Imports the slot's files on first use."""
    _discover(slot)
    return dict(sorted(_kinds[slot].items()))


def switches() -> dict[str, tuple[str, str | None, str | None]]:
    for slot in SLOTS:
        _discover(slot)
    return _switches


def nearest(name: str, names: Iterator[str] | list[str]) -> str:
    """' (did you mean x?)' for the closest of `names`, or an empty string."""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.55)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def lookup(slot: str, kind: str) -> Any:
    """The class registered for a kind. UserError with the nearest name when there is none."""
    known = kinds(slot)
    if kind not in known:
        raise UserError(f"no {slot} kind {kind!r}{nearest(kind, list(known))} (known: {', '.join(known)})")
    return known[kind]


def impl(config: KindConfig) -> Any:
    """The kind class that a configuration belongs to."""
    return _by_config[type(config)]


def slot_with(config_class: type | None) -> str | None:
    """The slot whose kind has this configuration class."""
    owner = _by_config.get(config_class) if config_class is not None else None
    return owner.slot if owner is not None else None


def build(config: KindConfig, *args: Any, **kwargs: Any) -> Any:
    """The module of a configured kind."""
    return impl(config)(config, *args, **kwargs)


@dataclass(frozen=True)
class Slot:
    """Field metadata: any kind of slot `name` that it `takes`; without a `kind` key it is `default`.

    `flat` names select the kind; `switch` pairs are (boolean flat name, the kind that it stands for when true).
    `takes` tells by the class of a kind whether it may stand here. A kind with a field of its own slot needs one that
    leaves out the kind itself: no schema holds itself.
    """

    name: str
    default: str | None
    flat: tuple[str, ...] = ()
    switch: tuple[tuple[str, str], ...] = ()
    takes: Callable[[Any], bool] | None = None

    def choices(self) -> dict[str, Any]:
        """Every kind that may stand here, by name."""
        return {name: cls for name, cls in kinds(self.name).items() if self.takes is None or self.takes(cls)}

    def kind_of(self, value: Any) -> Any:
        """The kind name a raw value (mapping, bare name, or configuration) asks for."""
        if isinstance(value, dict):
            return value.get("kind", self.default)
        return getattr(value, "kind", value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        classes = self.choices()
        choices = {kind: handler.generate_schema(cls.Config) for kind, cls in classes.items()}

        def expand(value: Any) -> Any:
            if isinstance(value, str):
                value = {"kind": value}
            kind = self.kind_of(value)
            if not isinstance(value, (dict, KindConfig)) or not isinstance(kind, str) or kind not in classes:
                known = isinstance(kind, str) and kind in kinds(self.name)
                raise PydanticCustomError(
                    "unknown_kind",
                    "{slot} kind {given} cannot stand here (possible: {known})"
                    if known
                    else "no {slot} kind {given}{hint} (known: {known})",
                    {"slot": self.name, "given": repr(kind), "hint": nearest(kind, list(classes)),
                     "known": ", ".join(classes)},
                )  # fmt: skip
            return value

        union = core_schema.tagged_union_schema(choices, discriminator=self.kind_of)
        checked = core_schema.no_info_before_validator_function(expand, union)
        return checked if self.default else core_schema.nullable_schema(checked)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        bare = {"enum": list(self.choices()), "description": f"any {self.name} kind, with its own defaults"}
        return {"anyOf": [bare, handler(schema)]}


def slot(
    name: str, default: str | None, *, flat: tuple[str, ...] = (), switch: dict[str, str] | None = None,
    takes: Callable[[Any], bool] | None = None,
) -> Any:  # fmt: skip
    """A configuration field that holds any kind of slot `name` (that it `takes`); when nothing is said kind `default`,
    or null."""
    info: Any = Field(default_factory=lambda: lookup(name, default).Config() if default else None)
    info.metadata.append(Slot(name, default, flat, tuple((switch or {}).items()), takes))
    return info


def slot_of(info: FieldInfo) -> Slot | None:
    """The slot that a field holds, if it holds one."""
    return next((m for m in info.metadata if isinstance(m, Slot)), None)
