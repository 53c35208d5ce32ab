"""Files of samples: lines are added whole or not at all, and hold what is needed to draw a sample again."""

import errno
import json
import os
import threading
import time

import pytest

from gptcore.errors import RunError, UserError
from gptcore.sample import continue_text
from gptcore.sample_file import SampleFile, records
from tests.babbler import char_tokenizer, make_model

LINES = [{"format": 1, "text": "\u00e9\n"}, {"format": 1, "text": "x" * 5000}]


def add(path, lines=LINES) -> None:
    file = SampleFile(path)
    file.add(lines)
    file.close()


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_is_enough_to_draw_the_sample_again():
    model, tokenizer = make_model(), char_tokenizer()
    settings = {"temperature": 1.3, "top_k": 9, "top_p": None, "seed": 5, "max_new_tokens": 20}
    samples = continue_text(model, tokenizer, "ab", num_samples=3, candidates=0, **settings)
    found = json.loads(json.dumps(records(samples, {"checkpoint": "x"}, settings)))
    for line, sample in zip(found, samples.samples, strict=True):
        again = continue_text(
            model, tokenizer, line["prompt"], num_samples=line["sample"] + 1, **line["settings"]
        ).samples[-1]
        assert again.text == line["text"] == sample.text and list(again.tokens) == line["tokens"]
        assert tokenizer.decode(line["tokens"]) == line["text"].removeprefix("ab")
        assert line["ranks"] == [step.rank for step in sample.steps] and line["ended"] == "length"
        assert line["probabilities"] == pytest.approx([step.probability for step in sample.steps], rel=1e-5)
        assert line["tokens_per_s"] == pytest.approx(60 / line["elapsed_s"], rel=1e-2)
    assert len({line["text"] for line in found}) == 3


def test_lines_are_added(tmp_path):
    path = tmp_path / "new" / "samples.jsonl"
    add(path)
    add(path, LINES[:1])
    assert read(path) == [*LINES, LINES[0]]


def test_nothing_added_leaves_no_file(tmp_path):
    SampleFile(tmp_path / "a.jsonl").close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.jsonl").touch()
    SampleFile(tmp_path / "b.jsonl").close()
    assert (tmp_path / "b.jsonl").exists()  # it was there before


@pytest.mark.parametrize("content", ["some text\n", "[1]\n", '{"a": 1}\n', "3\n", "\n"])
def test_other_files_are_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="holds something else"):
        SampleFile(path)
    assert path.read_text() == content


def test_a_line_that_was_cut_short_stays_by_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    add(path)
    with open(path, "a") as file:
        file.write('{"format": 1, "te')
    add(path, LINES[:1])
    *before, torn, last = path.read_text().splitlines()
    assert len(before) == 2 and torn == '{"format": 1, "te' and json.loads(last) == LINES[0]


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    add(path)
    before = path.read_bytes()
    write, written = os.write, []

    def full(handle, data):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(handle, data[:1000]))
        return written[0]

    file = SampleFile(path)
    monkeypatch.setattr("gptcore.sample_file.os.write", full)
    with pytest.raises(RunError, match="No space left"):
        file.add(LINES)
    assert written == [1000] and path.read_bytes() == before
    monkeypatch.undo()
    file.add(LINES)
    file.close()
    assert read(path) == LINES * 2


def test_writers_at_the_same_time_do_not_mix(tmp_path, monkeypatch):
    """Each write is slow and takes a few bytes only: without the locks lines would be torn, or read half written."""
    write = os.write

    def slow(handle, data):
        time.sleep(0.001)
        return write(handle, data[:700])

    monkeypatch.setattr("gptcore.sample_file.os.write", slow)
    path = tmp_path / "a.jsonl"
    lines = [{"format": 1, "text": str(i) * 3000} for i in range(8)]
    threads = [threading.Thread(target=add, args=(path, [line])) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read(path), key=str) == lines


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.extend(read(path)))
    reader.start()
    add(path)
    reader.join()
    assert found == LINES


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x.jsonl"):
        with pytest.raises(UserError, match="--sample_file: cannot write .*; choose another file"):
            SampleFile(path)
    full = SampleFile(type(tmp_path)("/dev/full"))
    with pytest.raises(RunError, match="No space left"):
        full.add(LINES)
    full.close()
