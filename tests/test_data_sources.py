"""Text from CSV, JSONL, Parquet and URLs: what other programs wrote is read back, and bad input names its place."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pandas
import pytest

from gptcore import cli, data_sources
from gptcore.data import open_dataset
from gptcore.data_sources import opened
from gptcore.errors import DataError, UserError
from gptcore.prepare import prepare

STORIES = [
    "One, with a comma and a 'quote'.",
    'Two lines,\n"quoted"\nand a third.',
    "naïve 世界 \U0001f916 <|endoftext|>",
    "ends with a line feed\n",
    "a" * 200_000,  # longer than the csv module reads by default
    "line\u2028separator, \x0b and \x1c end no line of JSON",
]
TITLES = [f"title {i}" for i in range(len(STORIES))]


def texts(path: Path | str, *fields: str) -> list[str]:
    with opened([path], fields) as source:
        return list(source.texts())


@pytest.fixture
def frame() -> pandas.DataFrame:
    return pandas.DataFrame({"title": TITLES, "n": range(len(STORIES)), "story": STORIES})


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def table(request, tmp_path, frame) -> Path:
    """The frame as pandas writes it."""
    path = tmp_path / f"stories.{request.param}"
    if request.param == "csv":
        frame.to_csv(path, index=False)
    elif request.param == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(path, row_group_size=2)
    return path


@pytest.mark.parametrize("size", [2**20, 1000, 37])
def test_documents_as_pandas_wrote_them(table, size, monkeypatch):
    monkeypatch.setattr(data_sources, "READ_BYTES", size)
    assert texts(table, "story") == STORIES
    assert texts(table, "title", "story")[0] == f"title 0\n{STORIES[0]}"


def test_tab_separated_values_have_no_quotes(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('id\ttext\n1\tsay "hi", all\n2\t"open\n')
    assert texts(path, "text") == ['say "hi", all', '"open']


def test_line_ends_inside_a_document(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"text": "a\r\nb\rc"}) + "\r\n\r\n" + json.dumps({"text": "d"}))
    assert texts(path, "text") == ["a\nb\nc", "d"]


def test_documents_end_and_split(tmp_path):
    """With a tokenizer without end-of-text token; empty and null ones are left out; none is cut by the split."""
    path = tmp_path / "t.jsonl"
    documents = ["first document", "", "second", None, "third and last"]
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    done = prepare(path, tmp_path / "out", "char", fields=["text"], val_fraction=0.3)
    dataset = open_dataset(tmp_path / "out")
    tok = dataset.tokenizer()
    assert (tok.decode(dataset.train), tok.decode(dataset.val)) == ("first document\nsecond\n", "third and last\n")
    assert (done.documents, done.empty, done.written) == (3, 2, True)
    assert dataset.meta["source"]["documents"] == 3
    assert not prepare(path, tmp_path / "out", "char", fields=["text"], val_fraction=0.3).written
    with pytest.raises(DataError, match=r"0 tokens in train\.bin"):  # the first document reaches across the split
        prepare(path, tmp_path / "out2", "char", fields=["text"], val_fraction=0.9)


def test_another_field_is_another_data_set(table, tmp_path):
    prepare(table, tmp_path / "out", "byte", fields=["story"])
    assert prepare(table, tmp_path / "out", "byte", fields=["title"]).written
    assert prepare(table, tmp_path / "out", "byte", fields=["title", "story"]).written


def test_missing_field_names_those_there_are(table, tmp_path, capsys):
    assert cli.main(["data", "build", str(table), "--out", str(tmp_path / "out"), "--field", "stroy"]) == 2
    message = capsys.readouterr().err
    assert "no field 'stroy'" in message and "'story'?" in message and "title, n, story" in message
    assert not (tmp_path / "out").exists()


def test_a_number_is_no_text(table):
    if table.suffix == ".csv":
        assert texts(table, "n") == [str(i) for i in range(len(STORIES))]
    else:
        with pytest.raises(DataError, match=r"(line|row) 1: the field 'n' holds int"):
            texts(table, "n")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": "b"\n', DataError, "line 2 is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n\n["b"]\n', DataError, "line 3 holds list"),
        (
            "t.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            UserError,
            r"line 2: there is no field 'text'. Did you mean 'txt'",
        ),
        ("t.jsonl", b'{"text": "\\ud800"}\n', DataError, "line 1: half a surrogate"),
        ("t.jsonl", b'{"text": "a\xff"}\n', DataError, r"not UTF-8 text: .* at byte 11 \(0xff\)"),
        ("t.jsonl", b"", DataError, "empty"),
        ("t.jsonl", b"[" * 100_000, DataError, "line 1 is not JSON"),
        ("t.csv", b"id,text\n1,a\n2,b,c\n", DataError, "line 3 has 3 fields, and the header 2"),
        ("t.csv", b'id,text\n1,"a\n', DataError, "line 2 is not CSV"),
        ("t.csv", b"text,text\na,b\n", UserError, "2 columns 'text'"),
        ("t.csv", b"", UserError, "no field 'text'. Its fields: none"),
        ("t.parquet", b"PAR1 this is none PAR1", DataError, "cannot read the Parquet file"),
        ("t.txt", b"text", UserError, "t.txt is none of these"),
        ("t.json", b"[]", UserError, "t.json is none of these"),
    ],
)
def test_bad_records_leave_the_folder_alone(tmp_path, name, content, error, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        prepare(path, tmp_path / "out", "byte", fields=["text"])
    assert not (tmp_path / "out").exists()


def test_parquet_is_no_plain_text(tmp_path):
    with pytest.raises(UserError, match="--field"):
        prepare(tmp_path / "t.parquet", tmp_path / "out", "byte")
    with pytest.raises(UserError, match="cannot read"):
        prepare(tmp_path / "none.parquet", tmp_path / "out", "byte", fields=["text"])


def test_csv_without_a_field_is_plain_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,text\n1,a\n")
    assert "".join(texts(path)) == "id,text\n1,a\n"


# URLs


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/short.txt":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www on the loopback interface."""
    (tmp_path / "www").mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "www")
    ) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_text_and_records_from_a_url(server, tmp_path, frame):
    (tmp_path / "www/a text.txt").write_text("some text\n" * 30)
    frame.to_parquet(tmp_path / "www/t.parquet")
    prepare(f"{server}/a%20text.txt?token=secret", tmp_path / "out", "char")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.tokenizer().decode(dataset.train) == "some text\n" * 27
    assert dataset.meta["source"]["files"] == [f"{server}/a%20text.txt"]
    assert texts(f"{server}/t.parquet", "story") == STORIES


@pytest.mark.parametrize(("page", "message"), [("/none.txt", "404"), ("/short.txt", "ended after 9 of 1000 bytes")])
def test_failing_download(server, tmp_path, page, message):
    out = tmp_path / "out"
    (tmp_path / "old.txt").write_text("old text\n" * 20)
    prepare(tmp_path / "old.txt", out, "char")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(DataError, match=message):
        prepare(server + page, out, "char")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_no_server_and_other_schemes(tmp_path):
    with pytest.raises(DataError, match="cannot fetch http://127.0.0.1:9/x.txt"):
        prepare("http://127.0.0.1:9/x.txt", tmp_path / "out", "char")
    with pytest.raises(UserError, match="only http"):
        prepare("file:///etc/hostname", tmp_path / "out", "char")


def test_unwritable_output(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("some text\n" * 30)
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["data", "build", str(tmp_path / "t.txt"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write the data folder" in capsys.readouterr().err


# with an end-of-text token


def test_documents_as_tiktoken_encodes_them(table, tmp_path):
    """Each by itself, each ended by the end-of-text token, whose name in a text is text."""
    from tests.test_tokenizer import gpt2_cached

    if not gpt2_cached():
        pytest.skip("the GPT-2 rank files are not in the cache; `pytest -m network` fetches them")
    from gptcore.tokenizer_files import get_encoding

    encoding = get_encoding("gpt2")
    prepare(table, tmp_path / "out", "tiktoken:gpt2", fields=["title"], val_fraction=0.4)
    wanted = [encoding.encode_ordinary(title) + [50256] for title in TITLES]
    train, val = (np.fromfile(tmp_path / f"out/{s}.bin", dtype=np.uint16).tolist() for s in ("train", "val"))
    assert (train, val) == (sum(wanted[:3], []), sum(wanted[3:], []))
    prepare(table, tmp_path / "out", "tiktoken:gpt2", fields=["story"], val_fraction=0.4)
    val = np.fromfile(tmp_path / "out/val.bin", dtype=np.uint16).tolist()
    assert val == [i for story in STORIES[4:] for i in [*encoding.encode_ordinary(story), 50256]]
