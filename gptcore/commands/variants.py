"""Every registered kind of every slot, with its formula and its knobs: `gptcore variants [SLOT]`.

`--markdown FILE` writes the catalogue with parameters, operations and decode state of each kind.
"""

from pathlib import Path

from ..errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("slot", nargs="?", help="only this slot")
    parser.add_argument("--markdown", metavar="FILE", help="write the table of all kinds into FILE instead")


def run(args) -> int:
    from ..registry import SLOTS, kinds, nearest

    if args.markdown:
        from ..analysis.catalogue import markdown
        from ..files import write_atomically

        write_atomically(Path(args.markdown), markdown().encode())
        print(f"written: {args.markdown}")
        return 0
    if args.slot is not None and args.slot not in SLOTS:
        raise UserError(f"no slot {args.slot!r}{nearest(args.slot, list(SLOTS))} (known: {', '.join(SLOTS)})")
    for slot in [args.slot] if args.slot else SLOTS:
        print(slot)
        for name, cls in kinds(slot).items():
            print(f"  {name:14} {(cls.__doc__ or '').strip().splitlines()[0]}")
            for field, info in cls.Config.model_fields.items():  # type: ignore[attr-defined]
                if field != "kind":
                    print(f"      {field:18} {_default(info)!s:10} {_meaning(info)}")
    return 0


def _default(info) -> object:
    value = info.get_default(call_default_factory=True)
    return getattr(value, "kind", "null" if value is None else value)


def _meaning(info) -> str:
    from ..registry import slot_of

    slot = slot_of(info)
    return f"any {slot.name} kind" if slot else info.description or ""
