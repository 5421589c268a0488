"""python evaluate.py: words of adapters, scores, one picture, the trace, a conversation, and the
mistakes of a user."""
import io
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
from evaluate import MODELS, as_asked, grounding, load_vlm, nearest_words, subspace, swap_words
from model import VLM

DATA, LLM, QUESTION = Shapes(), make_llm("source", 32), "what color is the circle?"


def evaluate_out(out, *args):
    """What the command says, when all is well."""
    done = run_here("evaluate.py", "--out", out, *args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- the words of an adapter ---------------------------------------------------------------------

def test_nearest_words_are_a_softmax_of_their_equation_and_can_be_moved():
    mlp, x = MLPAdapter(16, 32), torch.randn(2, 36, 16)
    nn.init.normal_(mlp.net[2].weight)  # tokens as long as words
    bridge = nearest_words(mlp, *LLM, WORDS, temperature=0.1)
    beta = (mlp(x) @ LangBridge(16, WORDS).set_basis(*LLM).E.T / (32 * 0.1)).softmax(-1)
    for adapter in (bridge, bridge.moved_to(*make_llm("target", 48))):
        assert torch.allclose(adapter.weights(x), beta, atol=1e-4)


def test_a_swapped_word_gives_its_weight_to_another_and_two_can_change_places():
    bridge, x = LangBridge(16, WORDS, 24).eval().set_basis(*LLM), torch.randn(2, 36, 16)
    v, beta, (red, blue) = bridge(x), bridge.weights(x), map(WORDS.index, (b" red", b" blue"))
    to_blue = beta[..., red, None] * (bridge.E[blue] - bridge.E[red])  # (B, N, C)
    to_red = beta[..., blue, None] * (bridge.E[red] - bridge.E[blue])
    for text, moved in (("Red=blue", to_blue), ("red=blue blue=red", to_blue + to_red), ("", 0)):
        assert torch.allclose(swap_words(bridge, text)(x), v + moved, atol=1e-5)


def test_an_oracle_is_grounded_in_its_whole_vocabulary_and_chance_is_far_below():
    words, x = [".", *DATA.kinds["color"], *DATA.kinds["shape"]], torch.zeros(200, 36, 15)
    oracle = SimpleNamespace(tokens=[*map(token, words)], weights=lambda x: x)
    for seen, _ in DATA.seen("test", x):
        for kind, weight in (("color", 1.0), ("shape", 0.5)):
            x[seen.picture, seen.patches, words.index(seen.words[kind])] = weight
    own, chance, best = grounding(oracle, x, DATA).values()
    assert own == best == {"color": 1, "shape": 1} and max(chance.values()) < 0.4
    x[..., 0] = 0.7  # now the shape is the third word, after the empty one
    own, _, best = grounding(oracle, x, DATA).values()
    assert (own, best) == ({"color": 1, "shape": 0}, {"color": 1, "shape": 1})


def test_visual_tokens_that_are_words_are_explained_by_them():
    v, vlm = torch.zeros(50, 36, 32), VLM(nn.Identity(), *LLM)
    for seen, _ in DATA.seen("test", v):
        ids = LLM[1].encode(f" {seen.words['color']} {seen.words['shape']}")
        v[seen.picture, seen.patches] = LLM[0].embed(torch.tensor(ids)).mean(0).detach()
    words, noise = (subspace(vlm, tokens, DATA) for tokens in (v, torch.randn(50, 36, 32)))
    assert words["explained_own"][0] > words["explained_random"][0] + 0.3
    assert abs(noise["explained_own"][0] - noise["explained_random"][0]) < 0.1


# ---- scores --------------------------------------------------------------------------------------

def test_an_adapter_is_chosen_by_its_scores_on_val_alone(out, monkeypatch):
    def score_vlm(vlm, features, data):
        assert [*features] == ["val"] and 0 < len(features["val"]) <= evaluate.CHOSEN_ON
        return {"val": {"vqa": vlm.adapter.D, "caption_f1": -2 * vlm.adapter.D}, "vqa": 1e9}

    monkeypatch.setattr(evaluate, "score_vlm", score_vlm)
    few, many = (LangBridge(D, WORDS) for D in (4, 16))
    assert evaluate.best_adapter([many, few, many], *LLM, out, evaluate.open_data(out)) is few


def test_everything_is_measured_and_written(out):
    said, r = evaluate_out(out), read_json(out / "evaluate.json")
    assert {*r} == {"models", "majority", "chance", "grounding", "subspace"}
    assert [*r["models"]] == [*MODELS] and all(f"\n{name}  " in said for name in MODELS)
    for scores in r["models"].values():
        assert all(low <= scores[name] <= high for name, (low, high) in scores["intervals"].items())
    assert {*r["grounding"]["mlp_align"]} == {"own", "chance", "best_of_kind"}
    assert all(len(r["subspace"]["mlp"][name]) == len(r["subspace"]["steps"]) > 2
               for name in ("explained_own", "explained_random"))
    assert (out / "evaluate.png").exists() and "(truth: " in said


# ---- one picture ---------------------------------------------------------------------------------

def test_a_question_is_asked_as_it_was_in_training():
    habits = {"request": "describe the scene.", "examples": ["is there a star?"],
              "words": "describe the scene what color is star circles it do you see".split()}
    for typed, asked in {" What  color is IT": "what color is it?", "a star ?": "a star?", " ": "",
                         "Describe the scene": "", "what do you see?": "what do you see?",
                         "What's the colour, please?": "what is the color?",
                         "can you tell me what colr it is": "what color it is?",
                         "hello": "hello?", "a car, a dog?": "a car, a dog?"}.items():
        assert as_asked(typed, habits) == (asked or habits["request"])
    for example, typed, asked in (
            ("say", "what is it", "what is it"), ("quoi ?", "Où est-ce?", "où est-ce ?"), "???",
            ("?", "tell me the dog's thing", "tell me the dog's thing?"),
            ("何？", "何色?", "何色？"), ("है?", "कितने हैं", "कितने हैं?"), ("?", "cafe\u0301", "café?")):
        assert as_asked(typed, {"request": "…", "examples": [example], "words": []}) == asked


def test_a_pipe_gets_an_answer_for_each_line(out, picture, monkeypatch):
    lines = ["what color is the circle", "", "is there a sun", "/swap Red=Purple", QUESTION,
             "/swap", QUESTION, "/map", "<|bos|>", "help", "exit", QUESTION]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    said = evaluate_out(out, "--image", picture).splitlines()
    vit, vlm = load_vlm(out, "langbridge_instruct")
    x = vit(read_picture(picture, vit.config.size))
    assert said[:2] == vlm.answer(x, [(0, QUESTION), (0, DATA.request)]) and said[6] == said[0]
    assert said[2].startswith("(no question in training had sun; try: ") and "had bos;" in said[8]
    assert said[7] == f"written: {out / 'picture_words.png'}"
    assert len(said) == 9 + 2 + len(DATA.example_questions())
    flags = "--image", picture, "--ask", QUESTION, "--swap", "RED=Purple"
    assert evaluate_out(out, *flags) == f"{said[4]}\n"


def test_a_map_has_the_mlp_beside_a_langbridge_and_shows_what_was_swapped(out, picture, tmp_path):
    maps = []
    for args in (["mlp_align"], ["langbridge_align"], ["langbridge_align", "--swap", ".=red"]):
        evaluate_out(out, "--image", picture, "--map", tmp_path / "a.png", "--model", *args)
        maps.append(Image.open(tmp_path / "a.png").convert("RGB"))
    alone, both, swapped = maps
    assert alone.size < both.size == swapped.size and both.tobytes() != swapped.tobytes()


STEP = re.compile(r"\n\d\. .*\n    \(.+\) = \(.+\)\n    ([\w/]+\.py):(\d+), [\w.]+:  (.+)\n")


@pytest.mark.parametrize("name, steps", [("langbridge_instruct", 7), ("mlp_align", 6)])
def test_the_trace_names_lines_that_are_there_and_ends_with_the_answer(out, picture, name, steps):
    args = [out, "--image", picture, "--model", name, "--ask", QUESTION]
    answer, said = evaluate_out(*args), evaluate_out(*args, "--trace")
    assert len(STEP.findall(said)) == steps and said.endswith(f"\n{answer}")
    for file, line, code in STEP.findall(said):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert lines[int(line) - 1].strip().startswith(code)


def test_the_readme_s_python_runs_and_its_trace_is_of_this_code(out, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(from .+?)```", text, flags=re.DOTALL)
    exec(block.replace('"out', f'"{out}').replace('"results', f'"{ROOT}/results'), {})
    assert len(capsys.readouterr().out.splitlines()) == block.count("print(") == 2
    steps = re.findall(r"\n    (\w+\.py), \w+\.\w+:  (.+)\n", text)
    assert steps and all(code in (ROOT / f).read_text(encoding="utf-8") for f, code in steps)


# ---- mistakes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("args, says", [
    ("--ask what?", "which picture?"), ("--images data", "go together"), ("--data a", "together"),
    ("--image P --swap red=yeti", "expected WORD=WORD"), ("--image P --map a", "ends in .png"),
    ("--image P --trace --model blind_instruct", "sees no picture"), ("--image a", "no picture"),
    ("--image P --map a.png --model blind_instruct", "no adapter"), ("--image data", "cannot read"),
    ("--image P --trace --ask größe", "had größe"), ("--model llm_source", "holds no VLM"),
    (f"--image P --ask '{'what? ' * 300}'", "does not fit")])
def test_a_mistake_is_answered_in_one_line(out, picture, args, says):
    args = [picture if arg == "P" else arg for arg in shlex.split(args)]
    assert_refused(run_here("evaluate.py", "--out", out, *args), says)


def test_a_folder_is_scored_as_far_as_it_goes_or_says_what_to_do(out, tmp_path):
    assert_refused(run_here("evaluate.py", "--out", tmp_path), "python train.py --out")
    for name in ("vit", "llm_source", "langbridge_align"):
        (tmp_path / name).symlink_to(out / name)
    evaluate_out(tmp_path)
    assert [*read_json(tmp_path / "evaluate.json")["models"]] == ["langbridge_align"]
