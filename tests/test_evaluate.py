"""python evaluate.py: what adapters say, the study, steering, the trace, a conversation, and the
errors of a user. And the README's Python, which is run as it stands."""
import inspect
import re

import pytest
import torch
from conftest import ROOT, WORDS, assert_refused, make_llm, run_here
from PIL import Image

import adapter as adapter_module
import data.pictures
import evaluate
import model
import vision
from adapter import Edited, LangBridge, MLPAdapter
from data.files import Refused, read_json
from data.world import COLORS, SHAPES
from evaluate import (
    Shifted, ask, chat, class_means, grounding, load_vlm, open_data, own_weight, say, score_llm,
    subspace)
from model import VLM
from results.figures import CELL, MAP_GAP
from results.unseen import accuracy, classifier
from train import parse_settings

DATA = parse_settings(["--preset", "laptop", "--device", "cpu"]).data
SIDE = 6  # patches
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def llm():
    return make_llm("source", 32)


# ---- what adapters say ---------------------------------------------------------------------------

class Oracle(LangBridge):
    """A LangBridge whose patches say what their features are."""

    def weights(self, x):
        return x


def test_an_oracle_is_grounded_and_chance_is_far_below(llm):
    words = COLORS + SHAPES
    oracle = Oracle(len(words), [f" {word}".encode() for word in words], 24).set_basis(*llm)
    features = torch.zeros(200, 36, len(words))
    for i in range(200):
        for seen in DATA.objects("test", i, SIDE):
            features[i, seen.patches, words.index(seen.words["color"])] = 1
            features[i, seen.patches, words.index(seen.words["shape"])] = 0.5
    vlm = VLM(oracle, *llm)
    own, chance, best = grounding(vlm, features, words, DATA)
    assert own["color"] == own["shape"] == best["color"] == best["shape"] == 1
    assert chance["color"] < 0.3 and chance["shape"] < 0.4
    assert own_weight(vlm, features, DATA) == pytest.approx(1)
    spread = own_weight(vlm, features + 0.1, DATA)  # 0.1 more on each of 14 words
    assert spread == pytest.approx(1.7 / 2.9, abs=1e-4)


def test_a_shifted_mlp_changes_the_patches_of_one_class_alone():
    means = {"red": torch.tensor([4.0, 0.0]), "blue": torch.tensor([0.0, 4.0]),
             "": torch.zeros(2)}
    x = torch.tensor([[[4.1, 0.2], [0.3, 3.9], [0.1, 0.1]]])  # red, blue, neither
    shifted = Shifted(torch.nn.Identity(), means, {"red": "blue"})(x)
    assert torch.allclose(shifted, x + torch.tensor([[[-4.0, 4.0], [0.0, 0.0], [0.0, 0.0]]]))


def test_the_means_of_classes_are_of_the_patches_that_show_them():
    v = torch.zeros(40, 36, len(COLORS))
    for i in range(40):
        for seen in DATA.objects("train", i, SIDE):
            v[i, seen.patches, COLORS.index(seen.words["color"])] = 1
    means = class_means(torch.nn.Identity(), v, DATA, "color")
    assert set(means) == {*COLORS, ""}
    for k, color in enumerate(COLORS):
        assert means[color].argmax() == k and means[color].sum() == pytest.approx(1)
    assert not means[""].any()  # patches without an object say nothing here


def test_visual_tokens_that_are_words_are_explained_by_them(llm):
    """The study of adapters whose outputs are known: embeddings of the right words, and noise."""
    gpt, encoding = llm
    v = torch.zeros(50, 36, 32)
    for i in range(50):
        for seen in DATA.objects("test", i, SIDE):
            ids = encoding.encode(f" {seen.words['color']} {seen.words['shape']}")
            v[i, seen.patches] = gpt.embed(torch.tensor(ids)).mean(0).detach()
    vlm = VLM(torch.nn.Identity(), *llm)
    said = subspace(vlm, v, DATA, pictures=50)
    noise = subspace(vlm, torch.randn(50, 36, 32), DATA, pictures=50)
    assert said["own_cos"][0] > said["other_cos"][0] + 0.3
    assert said["explained_own"][0] > said["explained_random"][0] + 0.3
    assert abs(noise["explained_own"][0] - noise["explained_random"][0]) < 0.1


def test_an_mlp_says_the_words_that_its_outputs_are_near(llm):
    gpt, encoding = llm
    mlp, words = MLPAdapter(32, 32), ["red", "circle", "top"]
    mlp.net = torch.nn.Identity()  # its outputs are its inputs: here, embeddings of words
    ids = [encoding.encode_single_token(f" {word}") for word in words]
    x = gpt.embed(torch.tensor(ids)).detach()[None]  # (1, 3, 32)
    said = say(VLM(mlp, *llm), x, words)
    assert said.shape == (1, 3, 3)
    assert said[0].argmax(-1).tolist() == [0, 1, 2]


def test_an_edited_bridge_says_what_it_was_told_to(llm):
    bridge, x = LangBridge(16, WORDS, 24).set_basis(*llm), torch.randn(1, 36, 16)
    words = ["red", "blue"]
    before = say(VLM(bridge, *llm), x, words)
    after = say(VLM(Edited(bridge, {"red": "blue"}), *llm), x, words)
    assert (after[..., 0] == 0).all()
    assert torch.allclose(after[..., 1], before.sum(-1))


def test_an_llm_that_knows_nothing_reads_nothing(llm):
    scores = score_llm(*llm, parse_settings(["--preset", "smoke"]).data, "source")
    assert scores["text_qa"] < 0.2 and scores["raster_caption_f1"] < 0.2


# ---- python evaluate.py --------------------------------------------------------------------------

def test_seen_and_unseen_pairs_are_named_by_everyone(out):
    done = run_here("results/unseen.py", "--out", out)
    assert done.returncode == 0, done.stderr
    found = read_json(out / "unseen.json")
    assert len(found) == 10 and all(f"| {title} |" in done.stdout for title in found)
    for splits in found.values():
        assert set(splits) == {"val", "comp"}
        assert all(0 <= splits[split][kind] <= 1 for split in splits for kind in DATA.kinds)


def test_a_classifier_learns_what_is_there():
    torch.manual_seed(0)
    y = torch.randint(0, 3, (300,))
    x = torch.eye(3)[y][:, None] + 0.3 * torch.randn(300, 4, 3)
    for loss in ("cross-entropy", "squared error"):
        net = classifier(x[:200], y[:200], 0, loss, steps=300)
        assert accuracy(net, x[200:], y[200:], loss) > 0.9
        assert accuracy(net, torch.randn(100, 4, 3), y[200:], loss) < 0.6


def test_everything_is_measured_and_written(out):
    done = run_here("evaluate.py", "--out", out)
    assert done.returncode == 0, done.stderr
    r = read_json(out / "evaluate.json")
    assert set(r["checkpoints"]) == set(evaluate.CHECKPOINTS)
    assert set(r["checkpoints"]["mlp_align"]["intervals"]) == {
        "vqa", "caption_f1", "pope_acc", "comp_vqa", "comp_caption_f1", "comp_pope_acc"}
    assert {"langbridge", "mlp_nearest", "chance", "best_of_kind"} <= set(r["grounding"])
    assert {"n", "changed_as_edited", "others_kept"} == set(r["steering"]["mlp"]["align"])
    assert {"n", "changed_as_edited", "others_kept"} <= set(r["steering"])
    for kind in ("mlp", "langbridge"):
        for name in ("own_cos", "other_cos", "explained_own", "explained_random"):
            assert len(r["subspace"][kind][name]) == len(r["subspace"]["steps"])
    for name in ("mistakes.png", "subspace.png"):
        assert (out / name).exists()
    assert "chance" in done.stdout  # beside every score


@pytest.mark.parametrize("name", ["mlp_instruct", "blind_instruct"])
def test_a_single_stage_can_be_examined(out, name):
    done = run_here("evaluate.py", "--out", out, "--model", name)
    assert done.returncode == 0 and f"\n{name} " in done.stdout
    assert set(read_json(out / "evaluate.json")["checkpoints"]) == {name}


def test_a_folder_with_some_stages_only_is_examined_as_far_as_it_goes(out, tmp_path):
    for name in ("vit", "llm_source", "mlp_align"):
        (tmp_path / name).symlink_to(out / name)
    done = run_here("evaluate.py", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(read_json(tmp_path / "evaluate.json")["checkpoints"]) == {"mlp_align"}


def test_a_folder_of_another_version_is_refused(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"stage": "vit"}', encoding="utf-8")
    assert_refused(run_here("evaluate.py", "--out", tmp_path, "--model", "mlp_align"),
                   "of another version of this project")


# ---- one picture ---------------------------------------------------------------------------------

def test_a_question_about_a_file_is_answered(out, picture):
    for args in (["--ask", "what color is the circle?"], []):
        done = run_here("evaluate.py", "--out", out, "--image", picture, *args)
        assert done.returncode == 0 and done.stderr == ""


def test_a_word_that_the_llm_has_never_read_is_named(out, picture):
    done = run_here("evaluate.py", "--out", out, "--image", picture, "--ask", "is there a sun?")
    assert done.returncode == 0
    assert "never read 'sun'" in done.stderr and "'there'" not in done.stderr


@pytest.mark.parametrize("question, word", [
    ("größe?", "größe"), ("7 objects", "7"), ("цвет", "цвет")])
def test_words_of_any_alphabet_are_named(out, picture, question, word):
    for flags in ([], ["--trace"]):
        done = run_here("evaluate.py", "--out", out, "--image", picture, "--ask", question, *flags)
        assert f"never read {word!r}" in done.stderr


@pytest.mark.parametrize("name", ["mlp_align", "langbridge_instruct"])
def test_a_word_map_of_either_adapter_has_both(out, picture, tmp_path, name):
    path = tmp_path / "words.png"
    done = run_here("evaluate.py", "--out", out, "--image", picture, "--map", path,
                    "--model", name)
    assert done.returncode == 0, done.stderr
    with Image.open(path) as drawn:
        assert drawn.size[0] == 3 * (6 * CELL + MAP_GAP) + MAP_GAP  # the picture, and two panels


def test_a_word_map_is_drawn_and_a_word_is_swapped(out, picture, tmp_path):
    path = tmp_path / "words.png"
    done = run_here("evaluate.py", "--out", out, "--image", picture, "--map", path)
    assert done.returncode == 0, done.stderr
    args = ["--out", out, "--image", picture, "--map"]
    assert run_here("evaluate.py", *args, tmp_path / "swapped.png", "--swap", "red=blue"
                    ).returncode == 0
    assert (tmp_path / "swapped.png").read_bytes() != path.read_bytes()


@pytest.mark.parametrize("args, says", [
    (["--ask", "what?"], "which picture?"),
    (["--trace"], "which picture?"),
    (["--image", "PICTURE", "--swap", "red"], "expected WORD=WORD"),
    (["--image", "PICTURE", "--swap", "red=zeppelin"], "with words of the adapter"),
    (["--image", "PICTURE", "--swap", "red=blue", "--model", "mlp_instruct"], "needs a LangBridge"),
    (["--image", "PICTURE", "--trace", "--model", "blind_instruct"], "sees no picture"),
    (["--image", "PICTURE", "--trace", "--swap", "red=blue"], "not with --swap"),
    (["--image", "PICTURE", "--map", "no.png", "--model", "blind_instruct"], "no adapter"),
    (["--image", "PICTURE", "--map", "words"], "ends in .png"),
    (["--image", "PICTURE", "--model", "vit"], "no model that sees pictures"),
    (["--model", "llm_source"], "no model that sees pictures"),
    (["--image", "PICTURE", "--ask", "  "], "the question is empty"),
    (["--image", "PICTURE", "--ask", "<|bos|>what?"], "'<|bos|>'"),
    (["--image", "PICTURE", "--ask", "what? " * 300], "does not fit"),
    (["--image", "PICTURE", "--model", "other"], "python train.py --out"),
    (["--image", "none.png"], "there is no picture"),
    (["--image", "README.md"], "cannot read"),
    (["--image", "data"], "cannot read"),
])
def test_a_mistake_is_answered_in_one_line(out, picture, args, says):
    args = [str(picture) if arg == "PICTURE" else arg for arg in args]
    assert_refused(run_here("evaluate.py", "--out", out, *args), says)


def test_a_folder_that_is_not_there_says_what_makes_it(tmp_path, picture):
    for args in (["--image", picture], []):
        assert_refused(run_here("evaluate.py", "--out", tmp_path / "nowhere", *args),
                       "python train.py --out")


# ---- the trace -----------------------------------------------------------------------------------

STEP = re.compile(r"\n\d\. .*\n    (\(.+\)) = (\(.+\))\n    ([\w/]+\.py):(\d+), ([\w.]+):  (.+)\n")
FILES = {"vision.py": vision, "adapter.py": adapter_module, "model.py": model,
         "data/pictures.py": data.pictures}


def trace_of(out, picture, name):
    done = run_here("evaluate.py", "--out", out, "--image", picture, "--trace", "--model", name,
                    "--ask", "what color is the circle?")
    assert done.returncode == 0, done.stderr
    return done.stdout


def letters(out, name):
    """What the letters of the table stand for in a model: {"N": 36, ..}"""
    vit, vlm = load_vlm(out, name)
    text = len(vlm.encoding.encode("question: what color is the circle?"))
    config, N = vit.config, vit.config.grid ** 2
    sizes = {"B": 1, "size": config.size, "N": N, "4 p^2": 4 * config.patch ** 2, "D": config.D,
             "C": vlm.llm.config.C, "V": vlm.llm.config.V,
             "prefix + N + rows": len(vlm.prefix) + N + config.grid}
    sizes["T"] = sizes["prefix + N + rows"] + text
    if isinstance(vlm.adapter, LangBridge):
        sizes["K"] = len(vlm.adapter.tokens)
    return sizes


@pytest.mark.parametrize("name", ["langbridge_instruct", "langbridge_align", "mlp_instruct"])
def test_the_shapes_of_the_trace_are_those_that_its_letters_promise(out, picture, name):
    sizes, steps = letters(out, name), STEP.findall(trace_of(out, picture, name))
    assert len(steps) == (7 if name.startswith("langbridge") else 6)
    for said, shape, *_ in steps:
        promised = [str(sizes.get(letter, letter)) for letter in said.strip("()").split(", ")]
        assert f"({', '.join(promised)})" == shape


def test_the_trace_names_lines_that_are_there_and_docstrings_promise_the_same(out, picture):
    for said, _, file, line, function, code in STEP.findall(
            trace_of(out, picture, "langbridge_instruct")):
        source = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert source[int(line) - 1].strip().startswith(code)
        owner, method = function.split(".") if "." in function else (None, function)
        holder = getattr(FILES[file], owner) if owner else FILES[file]
        documented = f"{inspect.getdoc(holder)} {inspect.getdoc(getattr(holder, method))}"
        if function == "LangBridge.forward" and "K" in said:
            documented = inspect.getdoc(LangBridge.weights)  # it calls that, and K is seen there
        assert said in documented, f"{function} does not promise {said}"


def test_the_trace_ends_with_the_answer_and_its_candidates(out, picture):
    said = trace_of(out, picture, "langbridge_instruct")
    candidates = re.findall(r"^        (\d\.\d{3})  '", said, flags=re.MULTILINE)
    assert len(candidates) == 5 and candidates == sorted(candidates, reverse=True)
    answer = run_here("evaluate.py", "--out", out, "--image", picture, "--ask",
                      "what color is the circle?").stdout.strip()
    assert said.strip().splitlines()[-1].endswith(f": {answer}".rstrip())


# ---- a conversation ------------------------------------------------------------------------------

@pytest.fixture
def talk(out, monkeypatch, capsys):
    """talk(line, ..): what a conversation says to these lines; and the maps that it draws."""
    vit, vlm = load_vlm(out, "langbridge_instruct")
    features = torch.randn(1, vit.config.grid ** 2, vit.config.D)
    known = set(read_json(out / "llm_source" / "config.json")["words"])
    maps = []

    def say_all(*lines):
        left = iter(lines)

        def next_line(_):
            try:
                return next(left)
            except StopIteration:
                raise EOFError

        monkeypatch.setattr("builtins.input", next_line)
        chat(vlm, features, open_data(out), known, lambda vlm: maps.append(vlm.adapter))
        return capsys.readouterr()

    say_all.maps = maps
    return say_all


def test_a_conversation_opens_with_questions_that_can_be_asked(talk):
    said = talk("/quit")
    for words in ("shape", "color", "how many", "/quit"):
        assert words in said.out
    assert said.err == ""


def test_no_example_question_has_a_word_that_the_llm_has_never_read(out):
    known = set(read_json(out / "llm_source" / "config.json")["words"])
    for question in open_data(out).example_questions():
        assert set(re.findall("[a-z]+", question)) <= known, question


def test_a_conversation_warns_of_words_that_were_never_read(talk):
    assert "never read 'sun'" in talk("is there a sun?").err
    assert talk("Is there a RED circle?", "").err == ""


def test_the_map_shows_what_was_swapped(talk):
    talk("/map", "/swap red=blue", "/map", "/swap", "/map")
    before, swapped, after = talk.maps
    assert isinstance(swapped, Edited) and before is after and not isinstance(after, Edited)


def test_nothing_that_is_typed_ends_a_conversation_but_quit(talk):
    said = talk("/swap red", "/dance", "<|bos|>", "what? " * 300, "/quit", "/map")
    for answer in ("expected WORD=WORD", "unknown: /dance", "'<|bos|>'", "does not fit"):
        assert answer in said.out
    assert talk.maps == []


def test_a_question_of_known_words_has_no_warning(llm, capsys):
    vlm = VLM(LangBridge(16, WORDS, 24).set_basis(*llm), *llm).eval()
    x = torch.randn(1, 36, 16)
    ask(vlm, x, "what color?", {"what", "color"})
    assert capsys.readouterr().err == ""
    with pytest.raises(Refused, match="at most"):
        ask(vlm, x, "what color? " * 300, {"what", "color"})


# ---- the README ----------------------------------------------------------------------------------

def test_the_python_of_the_readme_runs_as_it_stands(out, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    (tmp_path / "out").symlink_to(out)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == block.count("print(") == 2


def test_the_trace_of_the_readme_names_lines_that_are_there():
    steps = re.findall(r"\n    (\w+\.py), ([\w.]+):  (.+)\n", README)
    assert len(steps) >= 4
    for file, function, code in steps:
        owner, method = function.split(".")
        source = inspect.getsource(getattr(getattr(FILES[file], owner), method))
        assert code in source, f"{file}, {function}"
