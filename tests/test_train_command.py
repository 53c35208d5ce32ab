"""What `gptcore train` does after the training."""

import types

import pytest

from gptcore import cli, runfolder, runlog, sample
from gptcore.commands import train
from gptcore.runjson import write_json


def test_the_report_is_written_before_anything_is_printed(tmp_path, monkeypatch):
    """As with `gptcore train ... | head -1`, whose first line is that of the samples."""
    written = []
    report = types.SimpleNamespace(
        make_report=lambda config, **about: about, write_report=lambda content, folder: written.append(folder)
    )
    config = types.SimpleNamespace(with_vocab=lambda size: size)
    monkeypatch.setattr(cli, "cost_report", lambda: report)
    monkeypatch.setattr("gptcore.checkpoint.config_of", lambda folder: config)
    monkeypatch.setattr("gptcore.checkpoint.read_run", lambda folder: {"vocab_size": 5})

    def gone(*text, **options):
        raise BrokenPipeError

    monkeypatch.setattr(sample, "sample_text", gone)
    with pytest.raises(BrokenPipeError):
        train._finish(tmp_path, "x", "identity", "name", False)
    assert written == [tmp_path / "ppa"]


def test_a_training_outlives_the_reader_of_its_progress(monkeypatch):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stderr", Gone())
    screen = runlog.Screen(10, quiet=False)
    screen.say("kernels: none")
    screen._print("step 10/10")


def test_an_empty_checkpoint_is_no_finished_run(tmp_path):
    write_json(tmp_path / "run.json", {"status": "finished", "identity": "x"})
    for content, finished in ((b"", False), (b"x", True)):
        (tmp_path / "last.pt").write_bytes(content)
        assert runfolder.is_finished(tmp_path, "x") == finished
