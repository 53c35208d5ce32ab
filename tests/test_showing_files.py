"""Heatmaps: the numbers, the figure and the page say the same as the record."""

import csv
import io
import re
import sys
import xml.dom.minidom
from collections import Counter
from dataclasses import replace

import pytest

from gptcore.candidates import Candidate, Step
from gptcore.errors import RunError, UserError
from gptcore.sample import Sample, Samples, continue_text
from gptcore.showing.files import NO_FIGURE, check_folder, write_heatmaps
from gptcore.showing.heatmap import COLUMNS, draw, heatmap, shade, table
from gptcore.showing.page import build_page
from gptcore.tokenizer import CustomTokenizer
from tests.babbler import char_tokenizer, make_model

ORIGIN = {"run": "runs/one", "checkpoint": "best.pt", "step": 5, "identity": "ab" * 32, "model_hash": "cd" * 32}
SETTINGS = {"temperature": 0.8, "top_k": None, "seed": 1, "stop": [], "num_samples": 1}
TOKENIZER = CustomTokenizer("custom:x", [" ", "\n", "the", "$x_1$", "\u4e2d", "<script>alert(1)</script>", "\x1b", "a"])


def by_hand(*steps: tuple[int, list[tuple[int, float]]], prompt: str = "") -> Sample:
    """A sample of the drawn tokens, each with its candidates and their probabilities."""
    found = []
    for token, options in steps:
        candidates = tuple(Candidate(t, p, p / 2) for t, p in options)
        p = dict(options).get(token, 0.001)
        found.append(Step(token, 1.0, p, p / 2, 7, candidates))
    tokens = tuple(token for token, _ in steps)
    return Sample(prompt + TOKENIZER.decode(tokens), tokens, "length", tuple(found))


ODD = by_hand(
    (3, [(3, 0.5), (1, 0.25)]), (5, [(4, 0.9), (5, 0.05)]), (6, [(2, 0.6), (0, 0.3)]), (1, [(0, 0.7), (1, 0.2)]),
    prompt="<b>&",
)  # fmt: skip


@pytest.fixture(scope="module")
def babble() -> Samples:
    return continue_text(make_model(), char_tokenizer(), "ab", num_samples=2, max_new_tokens=30, seed=1, candidates=4)


@pytest.fixture(scope="module")
def short() -> Samples:
    return continue_text(make_model(), char_tokenizer(), "ab", num_samples=2, max_new_tokens=3, seed=1, candidates=2)


def rows_of(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_table_holds_every_candidate(babble):
    sample = babble.samples[0]
    rows = rows_of(table(sample, char_tokenizer()))
    assert tuple(rows[0]) == COLUMNS
    for number, step in enumerate(sample.steps, 1):
        mine = [row for row in rows if row["step"] == str(number)]
        (drawn,) = [row for row in mine if row["drawn"] == "1"]
        assert int(drawn["token"]) == step.token and int(drawn["rank"]) == step.rank
        assert float(drawn["probability"]) == pytest.approx(step.probability, rel=1e-5)
        assert [int(row["rank"]) for row in mine[:4]] == [1, 2, 3, 4]
        assert len(mine) == 4 + (step.rank > 4)
    assert "".join(row["text"] for row in rows if row["drawn"] == "1") == sample.text[2:]


def test_table_of_odd_tokens():
    rows = rows_of(table(ODD, TOKENIZER))
    assert [row["text"] for row in rows if row["step"] == "4"] == [" ", "\n"]
    assert [row["rank"] for row in rows if row["step"] == "3"] == ["1", "2", "7"]


def areas(png: bytes) -> Counter[tuple[int, int, int]]:
    """Pixels of each colour. A cell has hundreds, a colour of the legend has at most two columns."""
    from matplotlib.image import imread

    image = (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    return Counter(map(tuple, image.reshape(-1, 3).tolist()))


@pytest.mark.filterwarnings("error")  # a glyph that the font lacks is a warning
def test_figure_has_the_colour_of_every_probability():
    pytest.importorskip("matplotlib")
    found = draw(heatmap(ODD, TOKENIZER), "a $title$ \u201cof\u201d \u4e2d")
    assert found == draw(heatmap(ODD, TOKENIZER), "a $title$ \u201cof\u201d \u4e2d")
    area = areas(found)
    assert all(area[shade(c.probability)] > 200 for step in ODD.steps for c in step.candidates)
    assert area[shade(0.61803)] < 100
    other = by_hand((3, [(3, 0.61803), (1, 0.25)]))
    assert areas(draw(heatmap(other, TOKENIZER), ""))[shade(0.61803)] > 200


def test_long_generations_are_wrapped_and_the_figure_says_where_it_ends(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("gptcore.showing.heatmap.MOST_STEPS", 50)
    titles = []
    monkeypatch.setattr("gptcore.showing.heatmap._put", lambda figure, x, y, text, **how: titles.append(text))
    sample = by_hand(*[(7, [(7, 0.5)])] * 120)
    grid = heatmap(sample, TOKENIZER)
    bands = grid.bands(50)
    assert [(first, len(columns)) for first, columns in bands] == [(1, 50), (51, 50), (101, 20)]
    draw(grid, "title")
    assert "the first 50 of 120 steps" in titles[0]


def page_of(sample: Sample, prompt: str, tokenizer=TOKENIZER, **options) -> tuple[str, xml.dom.minidom.Document]:
    text = build_page(sample, prompt, tokenizer, title="<t>", facts={"stop": "<&>"}, links=["a.csv"], **options)
    bare = re.sub("<!DOCTYPE html>|<style>.*?</style>", "", text, flags=re.S)
    return text, xml.dom.minidom.parseString(bare)


def words(node) -> str:
    return node.data if node.nodeType == node.TEXT_NODE else "".join(map(words, node.childNodes))


def test_page_is_safe_and_complete():
    text, page = page_of(ODD, "<b>&")
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text and "default-src 'none'" in text
    (shown,) = [node for node in page.getElementsByTagName("div") if node.getAttribute("class") == "text"]
    assert words(shown) == "<b>&$x_1$<script>alert(1)</script>\\x1b\u21b5"
    cells = [node for node in page.getElementsByTagName("td") if "step" in node.getAttribute("title")]
    assert len(cells) == 4 * 3  # drawn, and two candidates
    framed = [cell.getAttribute("title") for cell in cells if " d" in cell.getAttribute("class")]
    assert len(framed) == 3 and "rank 1: $x_1$, probability 0.5" in framed[0]
    assert [node.getAttribute("id") for node in page.getElementsByTagName("input") if node.getAttribute("checked")] == [
        "by-softmax"
    ]


def test_page_cuts_the_text_where_the_sample_is_cut(babble):
    sample = babble.samples[0]
    _, page = page_of(replace(sample, text=sample.text[:9]), "ab", char_tokenizer(), mode="rank")
    (shown,) = [node for node in page.getElementsByTagName("div") if node.getAttribute("class") == "text"]
    assert words(shown).replace("\u21b5", "\n") == sample.text[:9]


@pytest.fixture
def quick_figure(monkeypatch):
    monkeypatch.setattr("gptcore.showing.files.draw", lambda grid, title: title.encode())


def test_files_are_the_same_for_the_same_command(short, tmp_path, quick_figure):

    def write(**changed):
        options = {"origin": ORIGIN, "settings": SETTINGS, "mode": "softmax"} | changed
        return write_heatmaps(short, char_tokenizer(), tmp_path, **options)[0]

    first = write()
    assert sorted(path.suffix for path in first) == [".csv", ".csv", ".html", ".html", ".png", ".png"]
    before = {path: path.read_bytes() for path in first}
    assert write() == first and {path: path.read_bytes() for path in first} == before
    assert not set(write(settings=SETTINGS | {"seed": 2})) & set(first)
    assert not set(write(origin=ORIGIN | {"identity": "ef" * 32})) & set(first)


def test_without_matplotlib_the_rest_is_written(babble, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    paths, notes = write_heatmaps(babble, char_tokenizer(), tmp_path, origin=ORIGIN, settings=SETTINGS, mode="softmax")
    assert {path.suffix for path in paths} == {".csv", ".html"} and notes == [NO_FIGURE] * 2
    assert ".png" not in paths[1].read_text()


def test_folders_that_cannot_be_written(tmp_path, babble, quick_figure):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--show_heatmaps: cannot write to .*file"):
        check_folder(tmp_path / "file")
    with pytest.raises(RunError, match="cannot write"):
        write_heatmaps(babble, char_tokenizer(), tmp_path / "gone", origin=ORIGIN, settings=SETTINGS, mode="softmax")
