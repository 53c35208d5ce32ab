"""`gptcore data`: prepare, build, check, describe and list data sets."""

import argparse
from pathlib import Path

from ..data_files import META, dataset_names, find_dataset, finish_pending, read_meta, recorded
from ..errors import DataError
from ..prepare import prepare, run_script
from ..tokenizer import SPECIFICATIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands on the parser of `gptcore data`."""
    actions = parser.add_subparsers(dest="data_command", required=True, metavar="ACTION")

    action = actions.add_parser("prepare", help="run get_dataset.sh of data sets (download and encode)")
    action.add_argument("names", nargs="+", metavar="NAME", help="a folder under data/, or a path")
    action.add_argument("--force", action="store_true", help="encode again even where all is up to date")

    action = actions.add_parser("build", help="encode your own text: files and URLs; CSV, JSONL and Parquet too")
    action.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="UTF-8 text, a file or an http(s) URL; several are concatenated in order",
    )  # fmt: skip
    action.add_argument(
        "--field", action="append", default=[], dest="fields", metavar="NAME",
        help="read .csv, .tsv, .jsonl, .ndjson or .parquet: this field of every record is a document; "
        "repeat it to join several fields",
    )  # fmt: skip
    action.add_argument("--out", required=True, type=Path, metavar="DIR", help="data folder to write")
    action.add_argument("--tokenizer", default="char", metavar="SPEC", help=f"{SPECIFICATIONS}; default char")
    action.add_argument("--val_fraction", type=float, default=0.1, metavar="F", help="part kept for validation; 0.1")
    action.add_argument("--force", action="store_true", help="encode again even where all is up to date")

    action = actions.add_parser("check", help="read every token of a prepared data set and verify it")
    action.add_argument("name", metavar="NAME", help="a folder under data/, or a path")
    action.add_argument("--tokenizer", metavar="SPEC", help="require this tokenizer")
    action.add_argument("--source_sha256", metavar="HEX", help="require that its text has this SHA-256")

    action = actions.add_parser("stats", help="statistics of a prepared data set, also written to stats.json beside it")
    action.add_argument("name", metavar="NAME", help="a folder under data/, or a path")

    actions.add_parser("list", help="table of the data sets")


def run(args: argparse.Namespace) -> int:
    """Carry out one sub-command; returns the exit code. Errors: UserError, DataError."""
    if args.data_command == "prepare":
        for folder in [find_dataset(name) for name in args.names]:
            run_script(folder, force=args.force)
    elif args.data_command == "build":
        _build(args)
    elif args.data_command == "check":
        _check(args)
    elif args.data_command == "stats":
        _stats(args)
    else:
        print(table())
    return 0


def _build(args: argparse.Namespace) -> None:
    done = prepare(
        args.inputs, args.out, args.tokenizer, val_fraction=args.val_fraction, fields=args.fields, force=args.force
    )
    state = "prepared" if done.written else "already prepared and up to date"
    documents = f", {done.documents:,} documents" if done.documents is not None else ""
    empty = f" ({done.empty:,} records without text left out)" if done.empty else ""
    print(
        f"{done.folder.resolve()}: {state}: {done.train_tokens:,} training + {done.val_tokens:,} validation tokens, "
        f"tokenizer {done.tokenizer}, vocabulary {done.vocab_size:,}{documents}{empty}"
    )


def _check(args: argparse.Namespace) -> None:
    from ..data import open_dataset  # imports torch: 1.5 s that the other sub-commands do not need

    dataset = open_dataset(find_dataset(args.name))
    dataset.check(vocab_size=dataset.vocab_size, block_size=1)
    meta = dataset.meta or {}
    source = meta.get("source")
    made_from = source.get("sha256") if isinstance(source, dict) else None
    for what, wanted, present in (
        ("tokenizer", args.tokenizer, meta.get("tokenizer")),
        ("text SHA-256", args.source_sha256, made_from),
    ):
        if wanted is not None and wanted != present:
            raise DataError(f"{dataset.folder}: the {what} is {present}, not {wanted}. Prepare it again.")
    print(
        f"{dataset.folder}: prepared and up to date: {len(dataset.train):,} training + {len(dataset.val):,} validation "
        f"tokens, vocabulary {dataset.vocab_size:,}"
    )


def _stats(args: argparse.Namespace) -> None:
    from .. import data_stats  # imports torch

    folder = find_dataset(args.name)
    stats = data_stats.measure(folder)
    print(data_stats.render(stats), flush=True)
    print(f"\nwritten to {data_stats.save(stats, folder)}")


def table() -> str:
    """All data sets as text: name, whether prepared, tokenizer, vocabulary, tokens."""
    rows = [("name", "prepared", "tokenizer", "vocab", "tokens"), *map(_row, dataset_names())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(name: str) -> tuple[str, str, str, str, str]:
    folder = find_dataset(name)
    finish_pending(folder)
    if not all((folder / f"{split}.bin").is_file() for split in ("train", "val")):
        return name, "no", "-", "-", "-"
    if not (folder / META).is_file():
        return name, "yes", "tiktoken:gpt2 (no meta.pkl)", "50257", "-"
    try:
        meta = read_meta(folder / META)
    except DataError:
        return name, "damaged", "-", "-", "-"
    entries = [entry for split in ("train", "val") if (entry := recorded(meta, split))]
    tokens = f"{sum(entry['tokens'] for entry in entries):,}" if len(entries) == 2 else "-"
    return name, "yes", str(meta.get("tokenizer", "char")), str(meta.get("vocab_size")), tokens
