"""python evaluate.py: intervals, word maps, the study, steering, and the errors of a user."""
import json
import random

import numpy as np
import pytest
import torch
from conftest import run, run_here
from PIL import Image

from adapter import LangBridge, MLPAdapter
from data.corpus import train_tokenizer
from data.report import line_plot
from data.scoring import by_objects, examine, intervals, summarize
from data.world import COLORS, World
from evaluate import Edited, grounding, own_weight, patches_of, readable, say, subspace
from model import GPT, VLM, GPTConfig
from transfer import SWEEPS

TOKENS = [b" .", b" red", b" blue", b" circle", b" square", b" top"]


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    encoding = train_tokenizer("source", 512, 0, documents=400)
    return GPT(GPTConfig(encoding.n_vocab, 32, 4, 1)), encoding


def exam(accuracy):
    """What a model that is right so often says, by the generator's own truth."""
    rng = random.Random(0)
    return examine(lambda split, items: [qa.answer if rng.random() < accuracy else "?" for _, qa in items], {"test": 300, "comp": 100}, World())


def test_the_truth_scores_one_and_nonsense_zero():
    S = summarize(exam(1.0))
    assert all(S[k] == 1 for k in ("vqa", "caption_f1", "caption_exact", "pope_acc", "comp_vqa", "comp_caption_f1"))
    assert all(summarize(exam(0.0))[k] == 0 for k in ("vqa", "caption_f1", "pope_acc", "comp_vqa"))


def test_an_interval_holds_the_score_and_has_the_width_of_a_binomial():
    said = exam(0.8)
    S, bounds = summarize(said), intervals(said)
    for name, (low, high) in bounds.items():
        assert low < S[name] < high
    width = bounds["pope_acc"][1] - bounds["pope_acc"][0]
    assert 0.7 < width / (2 * 1.96 * np.sqrt(0.8 * 0.2 / 300)) < 1.4
    assert set(by_objects(said)) == {1, 2, 3}


def test_the_patches_of_a_place_are_those_its_object_covers():
    assert patches_of(0, 6) == [0, 1, 6, 7] and patches_of(8, 6) == [28, 29, 34, 35]
    assert sorted(sum((patches_of(p, 6) for p in range(9)), [])) == list(range(36))


def test_a_swap_moves_the_weight_of_one_word_to_another(llm):
    adapter, x = LangBridge(16, TOKENS, 24).set_basis(*llm), torch.randn(2, 36, 16)
    edited, w = Edited(adapter, {"red": "blue"})(x), adapter.weights(x).clone()
    w[..., 2] += w[..., 1]
    w[..., 1] = 0
    assert torch.allclose(edited, w @ adapter.E) and not torch.allclose(edited, adapter(x))
    both = Edited(adapter, {"red": "blue", "blue": "red"})  # exchanged, not merged
    assert torch.allclose(Edited(both.adapter, {})(x), adapter(x)) and not torch.allclose(both(x), adapter(x))


def test_an_oracle_that_says_the_words_of_each_object_is_grounded_and_chance_is_far_below(llm):
    from data.world import SHAPES, make_scene
    words = COLORS + SHAPES
    adapter = LangBridge(len(words), [f" {w}".encode() for w in words], 24)
    adapter.set_basis(*llm)
    adapter.weights = lambda x: x  # each patch says what its features are
    features = torch.zeros(200, 36, len(words))
    for i in range(200):
        for o in make_scene("test", 0, i):
            features[i, patches_of(o.place, 6), words.index(o.color)] = 1
            features[i, patches_of(o.place, 6), words.index(o.shape)] = 0.5
    score = grounding(VLM(adapter, *llm), features, words, World(), top=2)
    assert score["color"] == score["shape"] == 1 and score["chance_color"] < 0.3 and score["chance_shape"] < 0.4
    assert own_weight(VLM(adapter, *llm), features, World()) == pytest.approx(1)
    assert own_weight(VLM(adapter, *llm), features + 0.1, World()) == pytest.approx(1.7 / 2.9, abs=1e-4)  # 14 words, 0.1 more on each


def test_visual_tokens_that_are_words_are_explained_by_them(llm):
    """The study's numbers on adapters whose outputs are known: the embeddings of the right words, and noise."""
    from data.world import make_scene
    model, encoding = llm
    v = torch.zeros(50, 36, 32)
    for i in range(50):
        for o in make_scene("test", 0, i):
            v[i, patches_of(o.place, 6)] = model.embed(torch.tensor(encoding.encode(f" {o.color} {o.shape}"))).mean(0).detach()
    said = subspace(VLM(torch.nn.Identity(), *llm), {"test": v}, World(), pictures=50)
    noise = subspace(VLM(torch.nn.Identity(), *llm), {"test": torch.randn(50, 36, 32)}, World(), pictures=50)
    assert said["own_cos"][0] > said["other_cos"][0] + 0.3 and said["explained_own"][0] > said["explained_random"][0] + 0.3
    assert abs(noise["explained_own"][0] - noise["explained_random"][0]) < 0.1


def test_only_whole_words_are_readable():
    assert readable([b" .", b"\n", b" red", b"ed", b" a", b"\xe4", b" circle"]) == ["red", "circle"]


def test_an_mlp_says_the_words_that_its_outputs_are_near(llm):
    vlm = VLM(MLPAdapter(16, 32), *llm)
    assert say(vlm, torch.randn(2, 36, 16), ["red", "circle"]).shape == (2, 36, 2)


def test_a_figure_is_written(tmp_path):
    line_plot(tmp_path / "f.png", "title", [("y", {"a line": ([0, 10], [0.1, 0.9], [0.0, 0.8], [0.2, 1.0])})], "x", "note", log=True)
    assert Image.open(tmp_path / "f.png").size[0] > 400


def test_everything_is_measured_and_written(out):
    done = run("evaluate.py", "--out", out)
    assert done.returncode == 0, done.stderr
    r = json.loads((out / "evaluate.json").read_text(encoding="utf-8"))
    assert set(r["checkpoints"]) == {"mlp_align", "langbridge_align", "mlp_instruct", "langbridge_instruct", "blind_instruct"}
    assert set(r["checkpoints"]["mlp_align"]["intervals"]) == {"vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1"}
    assert {"langbridge", "mlp_nearest", "chance"} <= set(r["grounding"]) and {"n", "changed_as_edited", "others_kept"} <= set(r["steering"])
    for kind in ("mlp", "langbridge"):
        assert all(len(r["subspace"][kind][k]) == len(r["subspace"]["steps"]) for k in ("own_cos", "other_cos", "explained_own", "explained_random"))
    assert (out / "mistakes.png").exists() and (out / "subspace.png").exists()


def test_a_word_map_is_drawn_and_a_word_is_swapped(out, tmp_path):
    Image.new("RGB", (60, 60), "red").save(tmp_path / "p.png")
    assert run_here("evaluate.py", "--out", out, "--image", tmp_path / "p.png", "--map", tmp_path / "words.png").returncode == 0
    assert Image.open(tmp_path / "words.png").size[0] > 1000
    assert run_here("evaluate.py", "--out", out, "--image", tmp_path / "p.png", "--swap", "red=blue", "--ask", "what color is it?").returncode == 0


@pytest.mark.parametrize("args, says", [
    (["--ask", "what?"], "which picture?"),
    (["--image", "PICTURE", "--swap", "red"], "expected WORD=WORD"),
    (["--image", "PICTURE", "--swap", "red=zeppelin"], "with words of the adapter"),
    (["--image", "PICTURE", "--swap", "red=blue", "--model", "mlp_instruct"], "needs a LangBridge"),
])
def test_a_wrong_flag_is_answered_in_one_line(out, tmp_path, args, says):
    Image.new("RGB", (60, 60), "red").save(tmp_path / "p.png")
    refused = run_here("evaluate.py", "--out", out, *[str(tmp_path / "p.png") if a == "PICTURE" else a for a in args])
    assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["basis", "patches"])
def test_an_ablation_has_a_point_for_each_value(out, what):
    done = run("evaluate.py", "--out", out, "--ablate", what, "--seeds", "0", "--no-stage2")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = json.loads((out / "evaluate.json").read_text(encoding="utf-8"))["ablations"][what]
    assert [p["value"] for p in sweep["points"]] == SWEEPS[what][1]
    assert all(set(p) == {"value", "K", "params", "own_weight", "native", "zero_shot"} for p in sweep["points"])
    text = (out / f"ablate_{what}.md").read_text(encoding="utf-8")
    assert (out / f"ablate_{what}.png").exists() and all(f"| {value} |" in text for value in SWEEPS[what][1])
