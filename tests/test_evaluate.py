"""python evaluate.py: words of adapters, scores, one picture, the trace, a conversation, and the
mistakes of a user."""
import re
import shlex
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from conftest import ROOT, WORDS, assert_refused, make_llm, run_here
from PIL import Image

import evaluate
from adapter import LangBridge, MLPAdapter, token
from data.dataset import Shapes
from data.files import read_json
from data.pictures import read_picture
from evaluate import (MODELS, best_on_val, grounding, load_vlm, nearest_words, own_weight, subspace,
                      swap_words)
from model import VLM

DATA, LLM = Shapes(), make_llm("source", 32)
ASK = ["--ask", "what color is the circle?"]


def evaluate_out(out, *args):
    """The command, when all is well."""
    done = run_here("evaluate.py", "--out", out, *args)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def part(out, tmp_path):
    """A folder with some of the stages only."""
    for name in ("vit", "llm_source", "langbridge_align", "blind_instruct"):
        (tmp_path / name).symlink_to(out / name)
    return tmp_path


# ---- the words of an adapter ---------------------------------------------------------------------

def test_nearest_words_are_a_softmax_of_their_equation_and_can_be_moved():
    mlp, x = MLPAdapter(16, 32), torch.randn(2, 36, 16)
    nn.init.normal_(mlp.net[2].weight)  # tokens as long as words
    bridge = nearest_words(mlp, *LLM, WORDS, temperature=0.1)
    beta = (mlp(x) @ LangBridge(16, WORDS).set_basis(*LLM).E.T / (32 * 0.1)).softmax(-1)
    for adapter in (bridge, bridge.moved_to(*make_llm("target", 48))):
        assert torch.allclose(adapter.weights(x), beta, atol=1e-4)


def test_a_swapped_word_gives_its_weight_to_another_and_two_can_change_places():
    bridge, x = LangBridge(16, WORDS, 24).set_basis(*LLM), torch.randn(2, 36, 16)
    before, v, (red, blue) = bridge.weights(x), bridge(x), map(WORDS.index, (b" red", b" blue"))
    one, both = before.clone(), before.clone()
    one[..., blue], one[..., red] = before[..., red] + before[..., blue], 0
    both[..., blue], both[..., red] = before[..., red], before[..., blue]
    for swaps, weights in (({"red": "blue"}, one), ({"red": "blue", "blue": "red"}, both)):
        assert torch.allclose(swap_words(bridge, swaps)(x), weights @ bridge.E, atol=1e-5)
    assert torch.equal(bridge(x), v)


def test_an_oracle_is_grounded_in_its_whole_vocabulary_and_chance_is_far_below():
    words, x = [".", *DATA.kinds["color"], *DATA.kinds["shape"]], torch.zeros(200, 36, 15)
    vlm = SimpleNamespace(adapter=SimpleNamespace(tokens=[*map(token, words)], weights=lambda x: x))
    for seen, _ in DATA.seen("test", x):
        x[seen.picture, seen.patches, words.index(seen.words["color"])] = 1.0
        x[seen.picture, seen.patches, words.index(seen.words["shape"])] = 0.5
    own, chance, best = grounding(vlm, x, DATA)
    assert own == best == {"color": 1, "shape": 1} and max(chance.values()) < 0.4
    assert own_weight(vlm, x, DATA) == pytest.approx(1)
    assert own_weight(vlm, x + 0.1, DATA) == pytest.approx(1.7 / 3.0)  # 0.1 on each of 15 words
    x[..., 0] = 0.7  # now the shape is the third word, after the empty one
    own, _, best = grounding(vlm, x, DATA)
    assert (own, best) == ({"color": 1, "shape": 0}, {"color": 1, "shape": 1})


def test_visual_tokens_that_are_words_are_explained_by_them():
    v, vlm = torch.zeros(50, 36, 32), VLM(nn.Identity(), *LLM)
    for seen, _ in DATA.seen("test", v):
        ids = LLM[1].encode(f" {seen.words['color']} {seen.words['shape']}")
        v[seen.picture, seen.patches] = LLM[0].embed(torch.tensor(ids)).mean(0).detach()
    words, noise = (subspace(vlm, tokens, DATA) for tokens in (v, torch.randn(50, 36, 32)))
    assert words["own_cos"][0] > words["other_cos"][0] + 0.3
    assert words["explained_own"][0] > words["explained_random"][0] + 0.3
    assert abs(noise["explained_own"][0] - noise["explained_random"][0]) < 0.1


# ---- scores --------------------------------------------------------------------------------------

def test_a_constant_is_chosen_by_its_scores_on_val_alone(monkeypatch):
    def score_vlm(vlm, features, data):
        assert list(features) == ["val"] and len(features["val"]) == evaluate.CHOSEN_ON
        return {"val": {"vqa": vlm, "caption_f1": -2 * vlm}, "vqa": 2 * vlm}

    monkeypatch.setattr(evaluate, "score_vlm", score_vlm)
    assert best_on_val({"a": 0.3, "b": 0.1, "c": 0.2}, torch.zeros(200, 1), DATA) == "b"


def test_everything_is_measured_and_written(out):
    done, r = evaluate_out(out), read_json(out / "evaluate.json")
    assert {*r} == {"models", "majority", "chance", "grounding", "subspace"}
    assert [*r["models"]] == [*MODELS] and all(name in done.stdout for name in (*MODELS, "chance"))
    for scores in (*r["models"].values(), r["majority"], r["chance"]):
        assert all(0 <= scores[name] <= 1 for name in DATA.SCORES)
        for name, (low, high) in scores.get("intervals", {}).items():
            assert low <= scores[name] <= high
    for found in r["grounding"].values():
        assert {*found} == {"own", "chance", "best_of_kind"} and {*found["own"]} == {*DATA.kinds}
    for name in ("own_cos", "other_cos", "explained_own", "explained_random"):
        assert len(r["subspace"]["mlp"][name]) == len(r["subspace"]["steps"]) > 2
    assert (out / "mistakes.png").exists() and "(truth: " in done.stdout


def test_a_folder_with_some_stages_only_is_scored_as_far_as_it_goes(part):
    evaluate_out(part)
    assert [*read_json(part / "evaluate.json")["models"]] == ["langbridge_align", "blind_instruct"]


# ---- one picture ---------------------------------------------------------------------------------

@pytest.mark.parametrize("args, question", [(ASK, ASK[1]), ([], DATA.request)])
def test_a_pipe_gets_an_answer_or_a_caption(out, picture, args, question):
    vit, vlm = load_vlm(out, "langbridge_instruct")
    answer = vlm.answer(vit(read_picture(picture, vit.config.size)), [(0, question)])
    done = evaluate_out(out, "--image", picture, *args)
    assert [done.stdout.strip()] == answer and done.stderr == ""


@pytest.mark.parametrize("question, word", [
    ("is there a sun?", "sun"), ("größe?", "größe"), ("7 objects", "7"), ("цвет", "цвет")])
def test_words_that_the_llm_has_never_read_are_named(out, picture, question, word):
    for flags in ([], ["--trace"]):
        done = evaluate_out(out, "--image", picture, "--ask", question, *flags)
        assert f"never read {word!r}" in done.stderr and "'there'" not in done.stderr


def test_a_map_has_both_adapters_and_shows_what_was_swapped(out, part, picture, tmp_path):
    maps = []
    for folder, args in ((out, ["mlp_align"]), (part, ["langbridge_align"]),
                         (part, ["langbridge_align", "--swap", "red=blue"])):
        evaluate_out(folder, "--image", picture, "--map", tmp_path / "a.png", "--model", *args)
        with Image.open(tmp_path / "a.png") as drawn:
            maps.append(drawn.convert("RGB"))
    both, alone, swapped = maps
    assert alone.size == swapped.size < both.size and alone.tobytes() != swapped.tobytes()


STEP = re.compile(r"\n\d\. .*\n    \(.+\) = \(.+\)\n    ([\w/]+\.py):(\d+), [\w.]+:  (.+)\n")


@pytest.mark.parametrize("name, steps", [("langbridge_instruct", 7), ("mlp_align", 6)])
def test_the_trace_names_lines_that_are_there_and_ends_with_the_answer(out, picture, name, steps):
    args = [out, "--image", picture, "--model", name, *ASK]
    answer, said = evaluate_out(*args).stdout, evaluate_out(*args, "--trace").stdout
    assert len(STEP.findall(said)) == steps
    for file, line, code in STEP.findall(said):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(line) - 1].strip().startswith(code)
    candidates = re.findall(r"\n        (\d\.\d{3})  '", said)
    assert len(candidates) == 5 and candidates == sorted(candidates, reverse=True)
    assert said.endswith(f": {answer}")


def test_a_conversation_answers_draws_swaps_and_ends_only_when_told_to(part, picture, monkeypatch):
    examples, asked, maps = DATA.example_questions(), [], []
    lines = iter([*examples, "A  RED circle?", "", "/map", "/swap red=blue", "/map", "/swap",
                  "/map", "/swap red", "/dance", "<|bos|>", "a sun?", "/quit", "/map"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(VLM, "answer", lambda _, features, about: asked.append(about[0][1]) or [""])
    monkeypatch.setattr("data.pictures.word_map", lambda *args: maps.append((args[0], args[2])))
    done = evaluate_out(part, "--image", picture, "--model", "langbridge_align")
    assert asked == [*examples, "a red circle?", DATA.request, "a sun?"]
    for said in (*examples, "(no answer)", "blue for red", "WORD=WORD", "unknown: /d", "'<|bos|>'"):
        assert said in done.stdout
    assert done.stderr.count("never read") == 1 and "'sun'" in done.stderr
    assert maps[0] == maps[2] != maps[1] and maps[0][0] == picture.with_name("picture_words.png")


def test_the_readme_s_python_runs_and_its_trace_is_of_this_code(out, tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "out").symlink_to(out)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(from .+?)```", text, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == block.count("print(") == 2
    steps = re.findall(r"\n    (\w+\.py), \w+\.\w+:  (.+)\n", text)
    assert len(steps) >= 4
    assert all(code in (ROOT / file).read_text(encoding="utf-8") for file, code in steps)


# ---- mistakes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("args, says", [
    ("--ask what?", "which picture?"), ("--trace", "which picture?"), ("--map a.png", "which"),
    ("--image P --swap red", "expected WORD=WORD"), ("--image P --swap red=yeti", "with words of"),
    ("--image P --swap red=blue --model mlp_instruct", "needs a LangBridge"),
    ("--images data", "go together"), ("--image P --map a", "ends in .png"),
    ("--image P --trace --model blind_instruct", "sees no picture"),
    ("--image P --map a.png --model blind_instruct", "no adapter"), ("--image data", "cannot read"),
    ("--image P --model vit", "no model that sees"), ("--model llm_source", "no model that sees"),
    ("--image P --ask ' '", "question is empty"), ("--image P --ask '<|bos|>what?'", "'<|bos|>'"),
    (f"--image P --ask '{'what? ' * 300}'", "does not fit"), ("--image P --model a", "train.py"),
    ("--image none.png", "there is no picture"), ("--image README.md", "cannot read")])
def test_a_mistake_is_answered_in_one_line(out, picture, args, says):
    args = [picture if arg == "P" else arg for arg in shlex.split(args)]
    assert_refused(run_here("evaluate.py", "--out", out, *args), says)


def test_a_folder_without_models_says_what_makes_them(tmp_path, picture):
    for args in (["--image", picture], []):
        assert_refused(run_here("evaluate.py", "--out", tmp_path, *args), "python train.py --out")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"stage": "vit"}', encoding="utf-8")
    assert_refused(run_here("evaluate.py", "--out", tmp_path, "--image", picture), "other version")
