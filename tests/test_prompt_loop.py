"""The prompt loop: what it passes on, what its commands change, and what a growing text may show."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcore.errors import UserError
from gptcore.prompt_loop import Cancel, Settings, converse
from gptcore.sample import StopStrings
from gptcore.showing.terminal import Stream
from gptcore.tokenizer import ByteTokenizer


class Talk:
    """Runs lines through the loop with a model that answers `<n>`, n being the seed that it was given."""

    def __init__(self, *lines: str, **settings):
        self.asked: list[tuple[str, str, Settings]] = []
        self.said: list[str] = []
        rest = iter(lines)

        def read() -> str:
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        self.wrong = converse(read, self.answer, self.said.append, Settings(**settings))
        self.unread = list(rest)

    def answer(self, text: str, added: str, settings: Settings) -> str:
        if "\u00c4" in added:
            raise UserError("does not cover")
        self.asked.append((text, added, settings))
        return f"{text}{added}<{settings.seed}>"


def test_the_text_grows_and_every_turn_has_a_seed_of_its_own():
    talk = Talk("a\\n", "", "b", seed=10)
    assert [(text, added) for text, added, _ in talk.asked] == [("", "a\n"), ("a\n<10>", ""), ("a\n<10><11>", "b")]
    assert talk.wrong == 0 and not talk.said


def test_reset_and_seed_start_the_seeds_over():
    talk = Talk("a", "b", "/reset", "a", "b", "/seed 7", "c", "d")
    assert [settings.seed for *_, settings in talk.asked] == [1337, 1338, 1337, 1338, 7, 8]
    assert talk.asked[2][0] == "" and talk.asked[4][0] != ""
    assert talk.asked[:2] == talk.asked[2:4]  # the same conversation again


def test_commands_change_what_follows():
    talk = Talk("/temperature 0.5", "/top_k 3", "/top_p 0.9", "/tokens 12", "a", "/top_k off", "/top_p off", "b")
    first, second = (settings for *_, settings in talk.asked)
    assert first == Settings(0.5, 3, 0.9, 1337, 12) and second == Settings(0.5, None, None, 1338, 12)
    assert talk.said[0] == "temperature 0.5, seed 1337, max_new_tokens 500"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/tmperature 1", "no command /tmperature; did you mean 'temperature'?"),
        ("/", "no command /"),
        ("/temperature", "/temperature takes a number, not ''"),
        ("/temperature -1", "temperature must be 0"),
        ("/temperature off", "/temperature takes a number, not 'off'"),
        ("/top_k 2.5", "/top_k takes a whole number, or off, not '2.5'"),
        ("/top_k 0", "top_k must be at least 1"),
        ("/tokens -3", "max_new_tokens must not be negative"),
        ("\u00c4", "does not cover"),
    ],
)
def test_a_wrong_line_changes_nothing_and_is_counted(line, message):
    talk = Talk("a", line, "b")
    assert talk.wrong == 1 and message in talk.said[0]
    assert talk.asked == Talk("a", "b").asked


def test_other_commands():
    talk = Talk("a", "/settings", "/help", "//a", "/quit", "b")
    assert "7 characters so far" in talk.said[0] and "/reset" in talk.said[1]
    assert talk.asked[-1][1] == "/a" and talk.unread == ["b"] and talk.wrong == 0


def test_settings_are_checked_at_the_start():
    with pytest.raises(UserError, match="top_p must be"):
        Settings(top_p=3)


def test_ctrl_c_is_noted_once_and_then_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Cancel() as cancel:
        assert not cancel.requested
        signal.raise_signal(signal.SIGINT)
        assert cancel.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# a text while it grows


def grow(text: str, stops: list[str], held: int | None = None) -> tuple[list[str], str]:
    """What is shown token by token, as generation ends, and the text in the end."""
    tokenizer, shown = ByteTokenizer(), []
    ends = StopStrings(tokenizer, stops)
    stream = Stream(tokenizer, ends, shown.append)
    if held is not None:
        stream.held = held
    tokens: list[int] = []
    for token in text.encode():
        tokens.append(token)
        stream.add(0, token)
        if ends(tokens):
            break
    final = ends.cut(tokenizer.decode(tokens))
    stream.end(final)
    return shown, final


@given(st.text("ab\u00e9\U0001f916", max_size=30), st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=2))
def test_what_is_shown_is_the_text(text, stops):
    shown, final = grow(text, stops)
    starts = (text[:n] for n in range(len(text) + 1))
    ended = next((start for start in starts if any(stop in start for stop in stops)), text)
    expected = ended[: min((ended.find(stop) for stop in stops if stop in ended), default=None)]
    assert "".join(shown) == final == expected


def test_nothing_of_a_stop_string_is_shown_and_the_rest_at_once():
    assert "".join(grow("xxabyy", ["aby"])[0]) == "xx"
    assert grow("caf\u00e9!", [])[0] == ["c", "a", "f", "\u00e9", "!"]
    shown, final = grow("xxabyy", ["aby"], held=0)  # the fault that holding back prevents
    assert "".join(shown) != final
