"""Scores against their definitions, and their signs: a gain is positive where the second trial is better."""

import math

import pytest

from gptcore.data import open_dataset
from gptcore.errors import UserError
from search.decide import Evidence, Rule, decide
from search.score import Score, task_score, tokens_per_byte
from search.trial import TrialResult


def done(loss, **scores):
    return TrialResult("k", "done", loss, scores=scores)


def test_each_score_by_its_definition():
    assert Score().value(done(2.0)) == 2.0
    assert Score("exp(-loss)", better="higher").value(done(math.log(4))) == pytest.approx(0.25)
    # 8 nats on 3 tokens of 6 bytes: 3 * 8 / ln 2 bits in 6 bytes
    assert Score("bits_per_byte", 3 / 6).value(done(8.0)) == pytest.approx(3 * 8 / math.log(2) / 6)
    assert Score("task:a:acc", better="higher").value(done(2.0, **{"a:acc": 0.4})) == 0.4
    assert Score("task:a", limit=7).tasks == ("a@7",)
    assert Score().value(TrialResult("k", "diverged", None)) is None
    with pytest.raises(KeyError):
        Score("task:a").value(done(2.0))


@pytest.mark.parametrize(
    "score",
    [Score(), Score("exp(-loss)", better="higher"), Score("bits_per_byte", 0.3), Score("task:p", better="lower")],
)
def test_a_lower_loss_is_a_gain(score):
    good, bad = (score.value(done(loss, p=loss)) for loss in (1.0, 2.0))
    assert score.gain(bad, good) > 0 > score.gain(good, bad)


def test_more_of_an_accuracy_is_a_gain():
    assert Score("task:a", better="higher").gain(0.2, 0.5) == pytest.approx(0.3)


def test_words_of_a_decision_have_the_unit_of_the_score():
    rule = Rule(0.8, None, 2, 3, unit=Score("bits_per_byte").unit)
    assert "gain +0.1 bits a byte" in decide([Evidence("a", (0.1, 0.1), 1.0)], rule).words


def test_tokens_per_byte_is_that_of_the_text(tmp_path):
    from gptcore.prepare import prepare

    text = "naïve café, " * 400
    (tmp_path / "t.txt").write_text(text)
    prepare([tmp_path / "t.txt"], tmp_path / "data", "char")
    opened = open_dataset(tmp_path / "data")
    val = text[-len(opened.val) :]
    assert tokens_per_byte(str(tmp_path / "data")) == pytest.approx(len(val) / len(val.encode()))


def test_a_task_that_is_not_there_is_named():
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="arc_eazy"):
        task_score("task:arc_eazy")
