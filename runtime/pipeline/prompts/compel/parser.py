r"""Read a prompt of compel's syntax: word+, (words)1.3, "words"--, (words).attend(0.8), .blend() and .and().

A rule is tried at a place, and where it fails the next one: what no rule takes is a word, up to the next space, as in
compel. Rules skip the white space before them.
"""

import math
import re
from dataclasses import dataclass, field

from ldmrt.runtime.pipeline.prompts.fragments import DEEPEST, Fragment, Fragments, unreadable

from .tree import Blend, Conjunction, fused, unescaped

PLUS, MINUS = 1.1, 0.9  # of each sign
SPACE = re.compile(r"[ \n\t\r]*")
# A word without syntax: an escaped sign; a plus or minus before what is no sign; digits; any other character.
WORD = re.compile(
    r"(?:\\[()\",.+\-=]|[-+](?![ \t\n\r]|[()\",.+\-=]|$)|-?[0-9]+|[^ \t\n\r\x0b\x0c()\",.+\-=])+"
)  # whose $ is the end: no line break comes before it
FREE = re.compile(r"[^ \t\n\r\x0b\x0c]+")
QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
SIGNS = re.compile(r"\++|-+")
NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+")
LORA = re.compile(r"(?:useLora|withLora)\s*\(")
KEYWORD = re.compile(r"[0-9A-Za-z_\-]+")
OPERATOR = re.compile(r"[ \n\t\r]*\.(swap|attend)[ \n\t\r]*\(")
CALL = re.compile(r"[ \n\t\r]*\.(blend|and|add)[ \n\t\r]*\(")
COMMA = re.compile(r",\S")  # after which compel puts a space
UNNORMALISED = "no_normalize"


@dataclass
class _Target:
    """What an operator is applied to, and where the rest begins."""

    fragments: Fragments
    end: int


@dataclass
class Parser:
    """Reads a prompt, or what stands in quotes in it.

    Attributes:
        text: What is read.
        prompt: The whole prompt, for errors.
        places: Where each character of the text stands in the prompt; the last one is where the text ends.
        depth: How many quotes and brackets stand around it.
    """

    text: str
    prompt: str
    places: list[int]
    depth: int = 0
    brackets: dict[int, _Target | None] = field(default_factory=dict)
    quotes: dict[int, _Target | None] = field(default_factory=dict)

    def conjunction(self) -> Conjunction:
        """Read the whole prompt."""
        targets = self.targets()
        call = None if targets is None else CALL.match(self.text, targets[1])
        if targets is None or call is None:
            return Conjunction((fused(self.free_text()),), (1.0,), self.prompt)
        weights, normalised, end = self.arguments(call.end(), blends=call[1] == "blend")
        weights = weights or (1.0,) * len(targets[0])
        texts = tuple(map(fused, targets[0]))
        if len(weights) != len(texts):
            expected = f"none, or {len(texts)}, one for each text"
            raise self.error(call.start(1), f"{len(weights)} weights of .{call[1]}()", expected)
        if (rest := SPACE.match(self.text, end)) and rest.end() < len(self.text):
            raise self.error(rest.end(), f"text after .{call[1]}()", f"the end of the prompt after .{call[1]}()")
        if call[1] == "blend" and normalised and not sum(weights):
            raise self.error(call.start(1), "weights of a blend that are 0 together", "numbers with another sum than 0")
        if call[1] != "blend":
            kept = [(text, weight) for text, weight in zip(texts, weights, strict=True) if text]
            return Conjunction(tuple(text for text, _ in kept), tuple(weight for _, weight in kept), self.prompt)
        if not all(texts):
            raise self.error(0, "an empty text in a blend", 'a text, or ""')
        return Conjunction((Blend(texts, weights, normalised),), (1.0,), self.prompt)

    def free_text(self) -> Fragments:
        """Read fragments up to the end of the text; what has no syntax is a word."""
        fragments: Fragments = ()
        at = self.skipped(0)
        while at < len(self.text):
            found = self.weighted(at) or self.quoted(at) or self.bracketed(at)
            if found is None:
                word = FREE.match(self.text, at)
                if word is None:
                    raise self.error(at, "a character that is no text", "words, with spaces between them")
                found = _Target((unescaped(word[0]),), word.end())
            fragments, at = fragments + found.fragments, self.skipped(found.end)
        return fragments

    def bracket_text(self, at: int, close: str) -> _Target:
        """Read fragments as far as they can be read, where commas and points are fragments of their own."""
        fragments: Fragments = ()
        while (at := self.skipped(at)) < len(self.text) and not self.text.startswith(close or "\0", at):
            found = self.weighted(at) or self.bracketed(at) or self.quoted(at) or self.word(at)
            if found is None and self.text[at] in ",.":
                found = _Target((Fragment(self.text[at]),), at + 1)
            if found is None:
                break
            fragments, at = fragments + found.fragments, found.end
        return _Target(fragments, at)

    def weighted(self, at: int) -> _Target | None:
        """Read what has a weight: word+, (words)1.3, "words"-- or .attend() of any; refuse .swap() and LoRAs."""
        if LORA.match(self.text, at):
            raise self.error(at, "a prompt loads no LoRA", hint="--lora FILE:WEIGHT")
        whole = self.quoted(at) or self.bracketed(at)
        target = whole or self.word(at)
        if target is None:
            return None
        operator = OPERATOR.match(self.text, target.end)
        if operator and operator[1] == "swap":
            place, expected = operator.start(1) - 1, "a prompt for each, or [from:to:0.4] with prompt_syntax a1111"
            raise self.error(place, ".swap() is not supported", expected)
        if operator and (found := self.weight(self.skipped(operator.end()), numbers=True)):
            end = self.skipped(found[1])
            if self.text.startswith(")", end):
                return _Target(_times(found[0], target.fragments), end + 1)
        direct = self.weight(target.end, numbers=whole is not None)
        return None if direct is None else _Target(_times(direct[0], target.fragments), direct[1])

    def weight(self, at: int, *, numbers: bool) -> tuple[float, int] | None:
        """Read signs, or a number, as a weight."""
        if signs := SIGNS.match(self.text, at):
            base = PLUS if signs[0][0] == "+" else MINUS
            return self.finite(float(base) ** len(signs[0]), at), signs.end()
        number = NUMBER.match(self.text, at) if numbers else None
        return None if number is None else (self.finite(float(number[0]), at), number.end())

    def finite(self, weight: float, at: int) -> float:
        """Refuse a weight that is not finite."""
        if not math.isfinite(weight):
            raise self.error(at, "a weight out of range", "a number, such as (words)1.3")
        return weight

    def word(self, at: int) -> _Target | None:
        """Read a word that holds no sign of the syntax."""
        match = WORD.match(self.text, at)
        return None if match is None else _Target((unescaped(match[0]),), match.end())

    def bracketed(self, at: int) -> _Target | None:
        """Read (words)."""
        if not self.text.startswith("(", at):
            return None
        if at not in self.brackets:
            with _Level(self, at):
                found = self.bracket_text(at + 1, ")")
            closed = self.text.startswith(")", found.end)
            self.brackets[at] = _Target(found.fragments, found.end + 1) if closed else None
        return self.brackets[at]

    def quoted(self, at: int) -> _Target | None:
        """Read "words", as brackets would be."""
        if at not in self.quotes:
            self.quotes[at] = None
            if inside := self.inside(at):
                with _Level(self, at):
                    found = inside[0].bracket_text(0, "")
                if found.end == len(inside[0].text):
                    blank = (Fragment(""),) if not inside[0].text.strip() else found.fragments
                    self.quotes[at] = _Target(blank, inside[1])
        return self.quotes[at]

    def quoted_prompt(self, at: int) -> _Target | None:
        """Read "words" as a prompt of their own."""
        inside = self.inside(at)
        if inside is None:
            return None
        with _Level(self, at):
            return _Target(inside[0].free_text() or (Fragment(""),), inside[1])

    def inside(self, at: int) -> "tuple[Parser, int] | None":
        """Return what reads the text in quotes that begin here, and where they end."""
        match = QUOTED.match(self.text, at)
        if match is None:
            return None
        places = self.places[match.start(1) : match.end(1) + 1]
        return Parser(match[1], self.prompt, places, self.depth + 1), match.end()

    def targets(self) -> tuple[list[Fragments], int] | None:
        """Read ("words", (words), word), which .blend() or .and() may follow."""
        at = self.skipped(0)
        if not self.text.startswith("(", at):
            return None
        found = list[Fragments]()
        while True:
            at = self.skipped(at + 1)
            target = self.quoted(at) or self.bracketed(at) or self.word(at) or self.quoted_prompt(at)
            if target is None:
                return None
            found.append(tuple(unescaped(one.text, one.weight) for one in target.fragments))
            at = self.skipped(target.end)
            if self.text.startswith(")", at):
                return found, at + 1
            if not self.text.startswith(",", at):
                return None

    def arguments(self, at: int, *, blends: bool) -> tuple[tuple[float, ...], bool, int]:
        """Read the weights of a call and its closing bracket; a blend may end with no_normalize."""
        weights, normalised = list[float](), True
        at = self.skipped(at)
        while not self.text.startswith(")", at):
            number, word = NUMBER.match(self.text, at), KEYWORD.match(self.text, at)
            if number and normalised:
                weights.append(self.finite(float(number[0]), at))
                at = self.skipped(number.end())
            elif word and word[0] == UNNORMALISED and blends and normalised:
                normalised, at = False, self.skipped(word.end())
            else:
                raise self.error(at, "weights that cannot be read", "numbers with commas between them, and )")
            if self.text.startswith(",", at):
                at = self.skipped(at + 1)
                if not self.text.startswith(")", at):
                    continue
            if not self.text.startswith(")", at):
                raise self.error(at, "weights that cannot be read", "numbers with commas between them, and )")
        return tuple(weights), normalised, at + 1

    def skipped(self, at: int) -> int:
        """Return where the white space that begins here ends."""
        match = SPACE.match(self.text, at)
        return match.end() if match else at

    def error(self, at: int, problem: str, expected: str | None = None, hint: str | None = None) -> Exception:
        """Make the error of a place."""
        return unreadable(self.prompt, self.places[min(at, len(self.places) - 1)], problem, expected, hint)


@dataclass
class _Level:
    """One more bracket around what is read meanwhile."""

    parser: Parser
    at: int

    def __enter__(self) -> None:
        """Refuse a bracket in too many others."""
        if self.parser.depth >= DEEPEST:
            raise self.parser.error(self.at, "brackets nested too deeply", f"at most {DEEPEST} levels")
        self.parser.depth += 1

    def __exit__(self, *_: object) -> None:
        """Leave the bracket."""
        self.parser.depth -= 1


def _times(weight: float, fragments: Fragments) -> Fragments:
    """Multiply the weights of fragments."""
    return tuple(unescaped(one.text, weight * one.weight) for one in fragments)


def read_compel(prompt: str) -> Conjunction:
    """Read a prompt.

    Raises:
        InvalidRequest: The prompt cannot be read, or asks for what is not supported; the error points at the place.
    """
    text, places, last = "", list[int](), 0
    for match in COMMA.finditer(prompt):
        places += [*range(last, match.end() - 1), match.end() - 1]
        text, last = f"{text}{prompt[last : match.end() - 1]} ", match.end() - 1
    places += range(last, len(prompt) + 1)
    return Parser((text + prompt[last:]).replace("\t", " "), prompt, places).conjunction()
