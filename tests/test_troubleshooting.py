"""The page about errors has an entry for every error that the sources raise, and none for an error that is gone."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "troubleshooting.md"
KINDS = {"LdmrtError", "BundleError", "InvalidRequest", "EngineNotFound", "NotFinite"} | {
    "NotFound",
    "TooLarge",
    "Cancelled",
    "DeadlinePassed",
    "Stopped",
    "TooSlow",
    "Overloaded",
    "NoKey",
    "TooManyOfKey",  # of the server
    "TooManyStreams",
    "Unavailable",
}
ANY = "…"  # what differs from case to case, in texts and on the page
MOST_OF_ONE_ENTRY = 60  # places in the sources: an entry that covers more says too little of each
FEWEST_LETTERS = 4  # of a pattern, so that none covers everything


class Texts:
    """What the string expressions of a file can be; parts that are known only at run time are `ANY`."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.stem = path.parent.name if path.name == "__init__.py" else path.stem
        self.nodes = list(ast.walk(self.tree))
        self.parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.calls: dict[str, list[ast.Call]] = {}
        for node in self.nodes:
            if isinstance(node, ast.Call):
                self.calls.setdefault(called(node), []).append(node)
        # name of a function -> modules that it is imported from
        self.imported = {
            (alias.name, (node.module or "").rpartition(".")[2])
            for node in self.nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def of(self, node: ast.expr, depth: int = 10) -> set[str]:
        """All texts of an expression."""
        if not depth:
            return {ANY}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return {node.value}
        if isinstance(node, ast.JoinedStr):
            parts = [self.of(value, depth - 1) for value in node.values]
            return {re.sub(f"{ANY}+", ANY, "".join(combination)) for combination in product(*parts)}
        if isinstance(node, ast.FormattedValue):
            if isinstance(node.value, ast.Call) and called(node.value) == "suggestion":
                return {""}  # what was likely meant follows a whole message
            known = self.of(node.value, depth - 1)
            quoted = {ANY if ANY in text else repr(text) for text in known} if node.conversion == 114 else known
            return {text or ANY for text in quoted}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return {left + right for left in self.of(node.left, depth - 1) for right in self.of(node.right, depth - 1)}
        if isinstance(node, ast.IfExp):
            return self.of(node.body, depth - 1) | self.of(node.orelse, depth - 1)
        if isinstance(node, ast.BoolOp):
            return set().union(*(self.of(value, depth - 1) for value in node.values))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
            return self.of(node.func.value, depth - 1)
        return self.of_name(node, depth) if isinstance(node, ast.Name) else {ANY}

    def of_name(self, name: ast.Name, depth: int) -> set[str]:
        """What a name can stand for: what is assigned to it, or handed over to the function as this argument."""
        scope: ast.AST | None = name
        while scope := self.parents.get(scope):  # type: ignore[arg-type]
            if not isinstance(scope, (ast.FunctionDef, ast.Module)):
                continue
            texts = [self.of(value, depth - 1) for value in assigned(scope, name.id, self.tree)]
            if isinstance(scope, ast.FunctionDef) and not texts:
                texts = [other.of(value, depth - 1) for other, value in handed_over(scope, name.id, self)]
            if texts:
                return set().union(*texts)
        return {ANY}


@cache
def sources() -> dict[str, Texts]:
    """The files of the packages, read when a test first needs them: collecting tests is to be quick."""
    return {
        path.relative_to(ROOT).as_posix(): Texts(path)
        for package in ("runtime", "model", "export", "serve", "tools")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "benchmarks" not in path.parts
    }


@cache
def defined() -> Counter[str]:
    """How many functions have a name."""
    return Counter(node.name for one in sources().values() for node in one.nodes if isinstance(node, ast.FunctionDef))


def handed_over(function: ast.FunctionDef, argument: str, file: Texts) -> Iterator[tuple[Texts, ast.expr]]:
    """The expressions that calls hand over as one argument of a function: those of its file, and of others that import
    the function, or call the only method of this name.
    """
    name, names = function.name, [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    bound = names[:1] in (["self"], ["cls"])
    for texts in sources().values():
        if texts is not file and (name, file.stem) not in texts.imported and not (bound and defined()[name] == 1):
            continue
        for call in texts.calls.get(name, ()):
            values = dict(zip(names[bound:], call.args, strict=False))
            values |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            if argument in values:
                yield texts, values[argument]


def called(call: ast.Call) -> str:
    """The name of a called function or class, without what stands before it."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@cache
def binding(scope: ast.AST) -> list[ast.AST]:
    """The nodes of a function or a module that give names a value."""
    kinds = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For)
    return [node for node in ast.walk(scope) if isinstance(node, kinds)]


def assigned(scope: ast.AST, name: str, module: ast.Module) -> Iterator[ast.expr]:
    """The expressions that are assigned to a name in a function or a module, in loops over a table too."""
    for node in binding(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from matched(target, node.value, name)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            yield from matched(node.target, node.value, name)
        elif isinstance(node, ast.For) and scope is not module:
            for row in rows_of(node.iter, module):
                yield from matched(node.target, row, name)


def rows_of(table: ast.expr, module: ast.Module) -> Iterator[ast.expr]:
    """What a loop takes one after another from a tuple, a list or the items of a dict, as far as the file states it."""
    if isinstance(table, (ast.Tuple, ast.List)):
        yield from table.elts
    elif isinstance(table, ast.Dict):
        yield from (ast.Tuple([key, value]) for key, value in zip(table.keys, table.values, strict=True) if key)
    elif isinstance(table, ast.Call) and isinstance(table.func, ast.Attribute) and table.func.attr == "items":
        yield from rows_of(table.func.value, module)
    elif isinstance(table, ast.Name):
        for value in assigned(module, table.id, module):
            yield from rows_of(value, module)


def matched(target: ast.expr | None, value: ast.expr, name: str) -> Iterator[ast.expr]:
    """The expression that a target gives to a name, also where several are assigned at once."""
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif isinstance(target, ast.Tuple):
        if isinstance(value, ast.IfExp):
            yield from (*matched(target, value.body, name), *matched(target, value.orelse, name))
        elif isinstance(value, ast.Tuple):
            for part, of_part in zip(target.elts, value.elts, strict=False):
                yield from matched(part, of_part, name)


def errors_of(texts: Texts) -> Iterator[ast.Call]:
    """The calls that make an error, also those of a subclass to its base, and of a kind that a function is given."""
    for kind in KINDS:
        yield from texts.calls.get(kind, ())
    for node in texts.nodes:
        if isinstance(node, ast.ClassDef) and KINDS & {getattr(base, "id", "") for base in node.bases}:
            yield from (call for call in ast.walk(node) if isinstance(call, ast.Call) and called(call) == "__init__")
        elif isinstance(node, ast.FunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            kinds = {arg.arg for arg in arguments if arg.annotation and "type[" in ast.unparse(arg.annotation)}
            yield from (call for call in ast.walk(node) if isinstance(call, ast.Call) and called(call) in kinds)


@cache
def problems() -> dict[str, list[str]]:
    """Every problem text of an error that the sources make, with the places that make it."""
    found: dict[str, list[str]] = {}
    for file, texts in sources().items():
        for call in errors_of(texts):
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            problem = call.args[1] if len(call.args) > 1 else keywords.get("problem")
            for text in texts.of(problem) if problem is not None else ():
                if letters(text) or not quotes_another(problem):
                    found.setdefault(text, []).append(f"{file}:{call.lineno}")
    return found


def letters(text: str) -> int:
    """How many letters of a text are known."""
    return len(re.findall(r"\w", text))


def quotes_another(problem: ast.expr) -> bool:
    """Whether a problem is the text of another error."""
    return any(isinstance(node, ast.Attribute) and node.attr == "problem" for node in ast.walk(problem))


def entries() -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [entry for row in rows for entry in re.findall(r"`([^`]+)`", row)]


def pattern_of(entry: str) -> re.Pattern[str]:
    """What an entry covers: its own words, and anything where it has dots."""
    return re.compile(".+".join(map(re.escape, entry.split(ANY))))


@pytest.mark.slow(minutes=0.08)
def test_problems_are_read_from_the_sources() -> None:
    """Constants, f-strings, texts that a variable holds and those that a function is given."""
    assert {"wrong shape of latents", "no backend …", "… was changed"} <= problems().keys()
    assert len(problems()) > 250


def test_every_problem_has_words() -> None:
    assert {text: places for text, places in problems().items() if letters(text) < FEWEST_LETTERS} == {}


def test_every_problem_has_an_entry() -> None:
    patterns = [pattern_of(entry) for entry in entries()]
    missing = [text for text in sorted(problems()) if not any(pattern.fullmatch(text) for pattern in patterns)]
    lines = [f"`{text}` of {problems()[text][0]}" for text in missing]
    assert missing == [], "\n".join(["add to docs/reference/troubleshooting.md:", *lines])


@pytest.mark.parametrize("entry", entries())
def test_an_entry_is_of_errors_that_exist_and_not_of_all(entry: str) -> None:
    places = {place for text in problems() if pattern_of(entry).fullmatch(text) for place in problems()[text]}
    assert places, "no error has this message any more"
    assert len(places) <= MOST_OF_ONE_ENTRY
    assert letters(entry) >= FEWEST_LETTERS


def test_entries_stand_once_with_cause_and_cure() -> None:
    assert len(entries()) == len(set(entries()))
    for row in re.findall(r"^\| `.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert all(len(cell) > 5 for cell in cells[1:]), row
