"""The program around its commands: output that cannot be written, closed streams, wrong options."""

import subprocess
import sys

import pytest

from gptcore import cli


def gptcore(command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    line = f"{sys.executable} -m gptcore {command}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("command", ["data list", "variants softmax", "config flags lobo"])
def test_a_full_disk_is_one_line(command):
    found = gptcore(f"{command} > /dev/full")
    name = command.split()[0]
    assert found.returncode == 1
    assert (
        found.stderr == f"gptcore {name}: standard output: No space left on device; make room, or name another place\n"
    )


@pytest.mark.parametrize("streams", [">&-", "<&-", "2>&-", "> >(true)"])
def test_closed_streams_give_no_traceback(streams):
    found = gptcore(f"data list {streams}")
    assert found.returncode in (0, 1) and not found.stderr


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch):
    def mistaken(args):
        raise FileNotFoundError(2, "No such file or directory", "x")

    monkeypatch.setattr("gptcore.commands.data.run", mistaken)
    with pytest.raises(FileNotFoundError):
        cli.main(["data", "list"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sample --max_new 3", "unrecognized arguments: --max_new 3; did you mean '--max_new_tokens'?"),
        ("sample --top_k 1.5", "argument --top_k: invalid int value: '1.5'"),
        ("data build", "the following arguments are required: INPUT, --out"),
        ("monitor", "required: LEDGER_OR_FOLDER"),
    ],
)
def test_wrong_options_are_one_line(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and words in err and err.count("\n") == 1 and not out
