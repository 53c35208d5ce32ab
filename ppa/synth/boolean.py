"""Boolean functions of liberty files as Python expressions on ints, one bit a stream."""

import re
from collections.abc import Callable

from gptcore.errors import RunError

_TOKEN = re.compile(r"\s*([A-Za-z_]\w*(?:\[\d+\])?|[01]|[!'^&*|+()])")


def to_python(function: str, name: Callable[[str], str], ones: str = "M") -> str:
    """The expression of a liberty `function`; `name` spells a pin, `ones` the int with every bit set.

    Liberty binds ! and ' most tightly, then ^, then & * or mere juxtaposition, then | and +.
    """
    tokens, at = [], 0
    text = function.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise RunError(f"cannot read the boolean function {function!r} at {text[at:]!r}")
        tokens.append(match[1])
        at = match.end()
    parser = _Parser(tokens, name, ones, function)
    result = parser.either()
    if parser.tokens:
        raise RunError(f"cannot read the boolean function {function!r} at {parser.tokens[0]!r}")
    return result


class _Parser:
    def __init__(self, tokens: list[str], name: Callable[[str], str], ones: str, function: str):
        self.tokens, self.name, self.ones, self.function = tokens, name, ones, function

    def next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def either(self) -> str:
        parts = [self.both()]
        while self.next() in ("|", "+"):
            self.tokens.pop(0)
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def both(self) -> str:
        parts = [self.unequal()]
        while self.next() not in ("", "|", "+", ")", "^", "'"):
            if self.next() in ("&", "*"):
                self.tokens.pop(0)
            parts.append(self.unequal())
        return parts[0] if len(parts) == 1 else f"({' & '.join(parts)})"

    def unequal(self) -> str:
        parts = [self.factor()]
        while self.next() == "^":
            self.tokens.pop(0)
            parts.append(self.factor())
        return parts[0] if len(parts) == 1 else f"({' ^ '.join(parts)})"

    def factor(self) -> str:
        token = self.tokens.pop(0) if self.tokens else ""
        if token == "!":
            return f"({self.ones} ^ {self.factor()})"
        if token == "(":
            value = self.either()
            if not self.tokens or self.tokens.pop(0) != ")":
                raise RunError(f"the boolean function {self.function!r} lacks a closing parenthesis")
        elif token in ("0", "1"):
            value = "0" if token == "0" else self.ones
        elif token and (token[0].isalpha() or token[0] == "_"):
            value = self.name(token)
        else:
            raise RunError(f"cannot read the boolean function {self.function!r} at {token!r}")
        while self.next() == "'":
            self.tokens.pop(0)
            value = f"({self.ones} ^ {value})"
        return value
