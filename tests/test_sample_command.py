"""gptcore sample: colours, heatmaps, files and the prompt loop, from the command line; on pipes and terminals."""

import io
import json
import re
import signal
import subprocess
import sys
import termios
import time

import pytest

from gptcore import cli
from gptcore.checkpoint import load_model
from gptcore.evaluate import model_hash
from tests.babbler import write_run
from tests.search.terminals import ROOT, Terminal, environment

CODE = re.compile(r"\x1b\[[0-9;]*m")
CLI = "import sys; from gptcore.cli import main; sys.exit(main(['sample', *sys.argv[1:]]))"
LINE = "-" * 72


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    write_run(folder)
    return folder


@pytest.fixture(autouse=True)
def colours_of_a_plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def sample(run_folder, *options) -> int:
    return cli.main(["sample", "--out_dir", str(run_folder), *map(str, options)])


def texts(out: str) -> list[str]:
    return [text.removesuffix("\n") for text in out.split(LINE + "\n")[:-1]]


# colours


def test_colours_change_nothing_but_the_look(run_folder, capsys):
    options = ["--start", "ab", "--max_new_tokens", 40, "--num_samples", 2]
    assert sample(run_folder, *options) == 0
    plain = texts(capsys.readouterr().out)
    for mode in ("minmax", "softmax", "rank"):
        assert sample(run_folder, *options, "--colorize_output", "--colorize_mode", mode, "--color", "always") == 0
        out = capsys.readouterr().out
        assert len(CODE.findall(out)) > 80
        for text, expected in zip(texts(CODE.sub("", out)), plain, strict=True):
            continuation, legend = text.rsplit("\n", 1)
            assert continuation.replace("\u21b5", "") == expected and f"({mode}): " in legend


@pytest.mark.parametrize(
    ("environ", "options", "coloured"),
    [
        ({}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": ""}, [], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
    ],
)
def test_when_there_are_colours(run_folder, capsys, monkeypatch, environ, options, coloured):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert sample(run_folder, "--colorize_output", "--max_new_tokens", 5, *options) == 0
    out, err = capsys.readouterr()
    assert ("\x1b[" in out) == coloured == ("no colours: " not in err)


# files


def test_files_of_a_sample(run_folder, tmp_path, capsys):
    lines, maps = tmp_path / "s.jsonl", tmp_path / "maps"
    options = ["--max_new_tokens", 9, "--num_samples", 2, "--sample_file", lines, "--show_heatmaps", maps]
    assert sample(run_folder, *options, "--heatmap_topk", 3, "--stop", "\\n") == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["text"] for line in found] == texts(out)
    first = found[0]
    assert first["run"] == str(run_folder) and first["checkpoint"] == "best.pt" and first["step"] == 5
    assert first["model_hash"] == model_hash(load_model(run_folder).model) and first["settings"]["stop"] == ["\n"]
    tables = sorted(maps.glob("*.csv"))
    assert len(tables) == 2 and all(str(path) in err for path in tables)
    assert max(int(row.split(",")[1]) for row in tables[0].read_text().splitlines()[1:4]) == 3
    assert sample(run_folder, *options) == 0
    assert len(lines.read_text().splitlines()) == 4


def test_heatmaps_go_into_the_run(tmp_path, capsys):
    write_run(tmp_path / "run")
    assert sample(tmp_path / "run", "--max_new_tokens", 3, "--show_heatmaps") == 0
    assert len(list((tmp_path / "run" / "samples").glob("sample-*-1.html"))) == 1
    assert sample(tmp_path / "run", "--max_new_tokens", 0, "--show_heatmaps") == 0
    assert "no heatmap of sample 1: it has no token" in capsys.readouterr().err


def test_a_disk_that_is_full_costs_no_text(run_folder, capsys):
    assert sample(run_folder, "--max_new_tokens", 9, "--sample_file", "/dev/full") == 1
    out, err = capsys.readouterr()
    assert len(texts(out)) == 1 and "No space left on device" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_samples", "2", "--interactive"], "one continuation at a time"),
        (["--colorize_mode", "rank"], "add --colorize_output"),
        (["--heatmap_topk", "3"], "belongs to --show_heatmaps"),
        (["--heatmap_topk", "0", "--show_heatmaps"], "at least 1"),
        (["--show_heatmaps", "/dev/null/x"], "--show_heatmaps: cannot write to /dev/null/x"),
        (["--sample_file", "/dev/null/x"], "--sample_file: cannot write /dev/null/x"),
        (["--sample_file", f"{ROOT}/README.md"], "holds something else than samples"),
        (["--lm_eval_tasks", "a", "--interactive"], "leave --interactive out"),
        (["--lm_eval_tasks", "a", "--start", "x"], "leave --start out"),
        (["--lm_eval_tasks", "a", "--stop", "x"], "leave --stop out"),
        (["--lm_eval_tasks", "a", "--num_samples", "2"], "leave --num_samples out"),
        (["--start", "a\udcff"], "--start is not UTF-8"),
        (["--interactive", "--stop", ""], "a stop string must not be empty"),
    ],
)
def test_what_does_not_go(run_folder, capsys, options, message):
    assert sample(run_folder, *options, "--max_new_tokens", "2") == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


# the prompt loop


def piped(run_folder, monkeypatch, text: str, *options) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    return sample(run_folder, "--interactive", "--max_new_tokens", 12, *options)


def test_prompts_from_a_pipe(run_folder, monkeypatch, capsys, tmp_path):
    lines = tmp_path / "s.jsonl"
    assert piped(run_folder, monkeypatch, "ab\r\n\n/reset\nab", "--sample_file", lines, "--stop", "q") == 0
    out, err = capsys.readouterr()
    first, more, again = texts(out)
    assert first.startswith("ab") and again == first and more
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["prompt"] for line in found] == ["ab", first, "ab"]
    assert [line["settings"]["seed"] for line in found] == [1337, 1338, 1337]
    assert [line["text"] for line in found] == [first, first + more, first]
    assert "tokens/s, ended by" in err
    assert sample(run_folder, "--start", first, "--seed", 1338, "--max_new_tokens", 12, "--stop", "q") == 0
    assert texts(capsys.readouterr().out) == [first + more]  # what the line says is enough to draw it again


def test_wrong_lines_of_a_pipe_do_not_end_it(run_folder, monkeypatch, capsys):
    assert piped(run_folder, monkeypatch, "\u00c4\n/top_k x\nab\n") == 2
    out, err = capsys.readouterr()
    assert len(texts(out)) == 1 and "does not cover" in err and "/top_k takes a whole number" in err


def test_a_pipe_that_is_not_text(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff\n"), encoding="utf-8"))
    assert sample(run_folder, "--interactive") == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err


def test_a_conversation_on_a_terminal(run_folder, tmp_path):
    lines = tmp_path / "s.jsonl"
    options = ["--out_dir", run_folder, "--interactive", "--max_new_tokens", 10**6, "--sample_file", lines]
    with Terminal(CLI, *options, "--device", "cpu") as terminal:
        terminal.until("Ctrl-D the program\r\n> ")
        terminal.until(r"(?s)> ab\r\n.{20}", "ab\n")  # tokens show while more are drawn
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(r"ended by cancelled\]\r\n> ")
        terminal.until("> half", "half")
        time.sleep(0.3)  # until it waits again: Python does not notice a signal right before that
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("Ctrl-D or /quit ends\r\n> ")
        terminal.until(r"max_new_tokens 3\r\n> ", "/tokens 3\n")
        terminal.until(r"\[3 tokens, .*\]\r\n> ", "\n")
        terminal.press("\x04")
        assert terminal.end() == 0 and termios.tcgetattr(terminal.slave) == terminal.before
    first, second = (json.loads(line) for line in lines.read_text().splitlines())
    assert first["ended"] == "cancelled" and second["prompt"] == first["text"] and len(second["tokens"]) == 3
    shown = re.search(r"> ab\r\n(.*?)\r\nadded to", terminal.text, re.S)
    assert shown and "ab" + shown[1].replace("\r\n", "\n") == first["text"]


# readers that go away, and Ctrl-C


def start(run_folder, *options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CLI, "--out_dir", run_folder, *map(str, options)], cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_closed_pipe_loses_no_file(run_folder, tmp_path):
    lines = tmp_path / "s.jsonl"
    with start(run_folder, "--max_new_tokens", 9, "--num_samples", 3, "--sample_file", lines) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1 and "Error" not in err and "Traceback" not in err
    assert len(lines.read_text().splitlines()) == 3


def test_ctrl_c_keeps_what_was_drawn(run_folder, tmp_path):
    lines = tmp_path / "s.jsonl"
    with start(run_folder, "--max_new_tokens", 10**6, "--num_samples", 2, "--sample_file", lines) as process:
        while not lines.exists():  # opened right before drawing begins
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert process.returncode == 130 and err.endswith("gptcore sample: interrupted\n")
    assert [line["text"] for line in found] == texts(out)
    assert {line["ended"] for line in found} == {"cancelled"} and all(line["tokens"] for line in found)
