"""The house: what a reader can rely on when turning the pages."""
import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT, run_here

FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("results/*.py"),
                *ROOT.glob("tests/*.py")])
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
CODE = {str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path  # data.world: its path
        for path in FILES if path.parent.name != "tests"}
# each of these may import from those before it; PAPER imports nothing of ours
ORDER = [{"data"}, {"vision", "adapter", "model"}, {"evaluate"}, {"train"}, {"transfer"},
         {"results"}]
PLACE = {top: place for place, group in enumerate(ORDER) for top in group}
PAPER = "results.report"


def imports(path):
    """The modules that a file imports, and the names from them: {"data.files", "torch.nn", ..}"""
    modules = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def top(module):
    return module.split(".")[0]


# ---- how long it is ------------------------------------------------------------------------------

READING_PATH = {"model.py", "vision.py", "adapter.py", "train.py", "transfer.py", "evaluate.py",
                "data/world.py", "data/corpus.py", "data/bpe.py", "data/scoring.py"}
LINES = 4098  # of code outside the tests: a promise to the reader,
ON_PATH = 2013  # and on the reading path
DENSITY = 38  # lines with comments or docstrings for 100 lines of code on the reading path


def count(path):
    """(lines of code, lines of docstrings and lines with comments) of a file"""
    text, docs, code, comments = path.read_text(encoding="utf-8"), set(), set(), 0
    for node in ast.walk(ast.parse(text)):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node):
            docs |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    empty = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in empty:
            code |= {*range(token.start[0], token.end[0] + 1)}
    return len(code - docs), len(docs) + comments


def test_the_house_is_as_small_as_promised_and_the_book_is_well_commented():
    assert sum(count(path)[0] for path in CODE.values()) <= LINES
    book = [count(ROOT / name) for name in READING_PATH]
    code, comments = map(sum, zip(*book))
    assert code <= ON_PATH
    assert 100 * comments >= DENSITY * code


# ---- how it hangs together -----------------------------------------------------------------------

def test_imports_point_one_way_and_never_in_a_circle():
    needs = {name: imports(path) & {*CODE} for name, path in CODE.items()}
    for name, modules in needs.items():
        for module in modules:
            assert PLACE[top(module)] <= PLACE[top(name)], f"{name} imports {module}"
    assert not needs[PAPER]
    TopologicalSorter(needs).prepare()  # raises CycleError


def test_the_smallest_run_needs_no_lab_and_works_in_the_bfloat16_of_a_gpu(tmp_path, picture):
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    few = [flag for stage in ("llm_source", "llm_target", "vit", "align", "instruct")
           for flag in (f"--{stage}_steps", "3")]
    said = ""
    for script, *flags in (
            ("train.py", "--preset", "smoke", "--threads", "1", "--device", "cpu", "--precision",
             "bf16", "--pictures", "24", "--align_K", "3", "--llm_source_V", "300", *few),
            ("transfer.py", "--threads", "1", "--rows", "zero_shot_langbridge"),
            ("evaluate.py", "--image", picture, "--ask", "what do you see?")):
        done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    told = [said.index(text) for text in ("\nlangbridge_instruct: vqa", "query the first model",
                                          "\nllm_target: text_qa")]
    assert told == sorted(told)


def test_the_requirements_are_what_is_imported():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = {re.split("[=<>~]", line)[0] for line in text.splitlines() if line}
    used = {top(module) for path in CODE.values() for module in imports(path)}
    packages = used - {*PLACE} - sys.stdlib_module_names
    assert packages - {"PIL"} | {"pillow", "pytest"} == required


def test_a_page_is_100_columns_wide():
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert len(line) <= 100, f"{path.name}:{number} has {len(line)} columns"


def test_the_top_level_holds_what_was_asked_for_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == set().union(*ORDER) - {"data", "results"}


@pytest.mark.parametrize("readme", ["README.md", "data/README.md", "results/README.md"])
def test_every_flag_that_a_readme_names_exists(readme):
    text = (ROOT / readme).read_text(encoding="utf-8").replace("\\\n", " ")
    named = re.findall(r"python ((?:results/)?\w+\.py)([^\n`]*)", text)
    assert named
    for script, rest in named:
        said = run_here(script, "--help").stdout
        for flag in re.findall(r"--[a-z][\w-]*", rest):
            assert re.search(rf"{flag}(?![\w-])", said), f"{script} {flag}"
