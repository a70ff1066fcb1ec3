"""The wall: folders in one order, no circle, no long function or file, a budget of statements.

Statements are those of the syntax tree that are no docstrings: formatting cannot change them.
"""

import ast
import io
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "workbench"
# Each may import only from those before it.
ORDER = (
    *("paths", "core", "losses", "options", "spans", "thoughts", "records"),
    *("model", "tasks", "rollouts", "methods", "evaluation", "training"),
    *("inspection", "corrections", "exchange", "viz", "studies", "app"),
)
ALONE = {"viz": {"viz", "core", "records", "spans"}}  # may import from no others
STUDENT = {
    "core",
    "losses",
    "options",
    "spans",
    "records",
    "model",
    "rollouts",
    "methods",
    "training",
}
FUNCTION, FILE = 40, 350  # code lines
STATEMENTS, STUDENT_STATEMENTS = 14_801, 4_972


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted names inside the package, with their syntax trees; without its two doors."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """What each module imports of the package, anywhere in its text."""
    graph = {}
    for name, tree in trees.items():
        graph[name] = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] == "workbench"
            ):
                module = node.module.removeprefix("workbench").lstrip(".")
                for alias in node.names:
                    inside = f"{module}.{alias.name}".lstrip(".")
                    graph[name].add(inside if inside in trees else module)
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                graph[name] |= {
                    n.removeprefix("workbench.") for n in names if n.startswith("workbench.")
                }
        graph[name].discard("")
    return graph


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the order."""
    arrows = []
    for module, others in graph.items():
        folder = module.split(".")[0]
        for other in sorted(others):
            target = other.split(".")[0]
            above = ORDER.index(target) > ORDER.index(folder)
            if above or target not in ALONE.get(folder, {target}):
                arrows.append(f"{module} imports {other}")
    return arrows


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring; a package's face and its own files are no ring."""
    inner = {m: {o for o in others if not m.startswith(o + ".")} for m, others in graph.items()}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def is_docstring(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Expr) else None
    return isinstance(text, ast.Constant) and isinstance(text.value, str)


def statements(tree: ast.AST) -> int:
    return sum(isinstance(n, ast.stmt) and not is_docstring(n) for n in ast.walk(tree))


def code_lines(source: str) -> set[int]:
    """Lines that hold code: no comments, no docstrings, no blank lines."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if is_docstring(node):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def too_long(source: str, name: str) -> list[str]:
    lines = code_lines(source)
    complaints = [f"{name} has {len(lines)} code lines"] if len(lines) > FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            if size > FUNCTION:
                complaints.append(f"{name}: {node.name} has {size} code lines")
    return complaints


# ---- the house


def test_each_folder_imports_only_from_those_before_it():
    assert upward(imports(modules(PACKAGE))) == []


def test_no_circle():
    assert circle(imports(modules(PACKAGE))) == []


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_functions_and_files_are_short(path):
    assert too_long(path.read_text(encoding="utf-8"), path.name) == []


def test_the_budget_of_statements():
    counts = {name: statements(tree) for name, tree in modules(PACKAGE).items()}
    student = sum(n for name, n in counts.items() if name.split(".")[0] in STUDENT)
    assert sum(counts.values()) <= STATEMENTS
    assert student <= STUDENT_STATEMENTS


# ---- the wall itself: what is planted is found


def planted(tmp_path, **sources: str) -> dict[str, set[str]]:
    for name, source in sources.items():
        path = tmp_path / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return imports(modules(tmp_path))


def test_a_planted_upward_import_is_found(tmp_path):
    graph = planted(
        tmp_path,
        core="def late():\n    from workbench.training.run import fit\n",
        training__run="from workbench import core",
        viz__tokens="from workbench.model.policy import Policy",
        model__policy="import workbench.core",
    )
    assert upward(graph) == ["core imports training.run", "viz.tokens imports model.policy"]


def test_a_planted_circle_is_found(tmp_path):
    graph = planted(
        tmp_path,
        model__a="from workbench.model import b",
        model__b="from workbench.model.c import x",
        model__c="import workbench.model.a",
    )
    assert set(circle(graph)) == {"model.a", "model.b", "model.c"}
    assert circle(planted(tmp_path, model__c="x = 1")) == []


def test_a_planted_long_function_and_file_are_found():
    body = "".join(f"    x = {i}\n\n    # why\n" for i in range(FUNCTION))
    assert too_long(f'def f():\n    """Words."""\n{body}', "f.py") == ["f.py: f has 41 code lines"]
    assert too_long("def f():\n" + body.replace("    x = 0\n", "", 1), "f.py") == []
    assert too_long("x = 1\n" * 351, "g.py") == ["g.py has 351 code lines"]


def test_statements_do_not_depend_on_form():
    assert statements(ast.parse('"""Words."""\nx = 1; y = 2\nif x:\n    y = 3\n')) == 4
