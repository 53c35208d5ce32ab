"""The program `gptcore`: finds the command, imports only what it needs, and turns errors into messages and exit codes.

This file is the composition root: it names the packages above `gptcore` (ppa, search) as text and never imports them
itself. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

import argparse
import atexit
import contextlib
import errno
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

# command -> (module, one line of help). A module has add_arguments(parser) and run(args) -> exit code; if it sets
# TAKES_CONFIG, then args.config is the configuration file (or None) and args.overrides what else is not an option.
COMMANDS = {
    "train": ("gptcore.commands.train", "train a model: CONFIG [key=value | --flat_name=value ...]"),
    "sample": ("gptcore.commands.sample", "generate text from a trained run"),
    "eval": ("gptcore.commands.eval", "scores of a trained run on tasks, and bits per byte of a text"),
    "inspect": ("gptcore.commands.inspect", "runs; activations, weights, softmax of a run; two runs compared"),
    "quantize": ("gptcore.commands.quantize", "what a trained run loses at fewer bits, without more training"),
    "config": ("gptcore.commands.config", "show, compare and document configurations"),
    "variants": ("gptcore.commands.variants", "list the kinds of every slot"),
    "data": ("gptcore.commands.data", "prepare text for training"),
    "ppa": ("ppa.commands", "what a configuration costs in hardware"),
    "search": ("search.commands", "greedy search for the best loss per added cost"),
    "sweep": ("search.sweep", "run a list or grid of configurations: FILE [key=value ...]"),
    "monitor": ("search.monitor", "watch a search, running or ended: LEDGER_OR_FOLDER [STUDY]"),
}


# What a disk or a place does to a command, not a mistake of the program.
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, and which was meant; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        from .registry import nearest

        wrong = message.removeprefix("unrecognized arguments: ").split()[0] if "unrecognized" in message else ""
        hint = nearest(wrong.partition("=")[0], list(self._option_string_actions)) if wrong.startswith("--") else ""
        self.exit(2, f"{self.prog}: {message}{hint} (`{self.prog} --help` lists the options)\n")


def cost_report() -> Any:
    """The module that writes cost reports, for commands of this package; it belongs to the one above."""
    return importlib.import_module("ppa.report")


def build_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    module = importlib.import_module(COMMANDS[name][0])
    parser = Parser(
        prog=f"gptcore {name}", description=module.__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def _parse(name: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = build_parser(name)
    if not getattr(importlib.import_module(COMMANDS[name][0]), "TAKES_CONFIG", False):
        return parser.parse_args(argv)
    args, rest = parser.parse_known_args(argv)
    named = rest and not rest[0].startswith("-") and "=" not in rest[0]
    args.config = rest.pop(0) if named else None
    args.overrides = rest
    return args


def _usage() -> str:
    rows = "\n".join(f"  {name:10}{help}" for name, (_, help) in COMMANDS.items())
    return f"usage: gptcore COMMAND ...\n\n{rows}\n\n`gptcore COMMAND --help` explains one command."


def main(argv: Sequence[str] | None = None) -> int:
    _open_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name not in COMMANDS:
        from .registry import nearest

        print(f"gptcore: no command {name!r}{nearest(name, list(COMMANDS))}\n\n{_usage()}", file=sys.stderr)
        return 2
    from .errors import RunError, UserError

    # At exit the collector walks every object of torch: a report of GPT-2 takes 3.3 s without that walk, 5.2 s with.
    atexit.register(gc.freeze)
    try:
        args = _parse(name, argv[1:])
        code = args.run(args)
        sys.stdout.flush()
        return code
    except (UserError, RunError) as error:
        print(f"gptcore {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"gptcore {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) went away: nothing to tell it
        _silence()
        return 1
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        _silence()
        where = error.filename or "standard output"
        with contextlib.suppress(OSError):
            print(f"gptcore {name}: {where}: {error.strerror}; make room, or name another place", file=sys.stderr)
        return 1


def _open_streams() -> None:
    """Python has no stream at all where a shell has closed one (`>&-`)."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def _silence() -> None:
    """Python would complain again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):  # a test's stream has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
