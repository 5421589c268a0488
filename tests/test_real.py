"""A LangBridge on a real LLM: what it reads, and the command, on a tiny GGUF file."""
import json

import pytest
import torch
from conftest import assert_refused, run_here
from test_gguf import some_file

from adapter import EMPTY, load_adapter, token
from data.gguf import GGUF, read_encoding
from data.world import COLORS, PLACES, make_scene
from evaluate import held_out
from model import VLM
from results import real
from train import load_settings

FEW = ["--shots", 2, "--pictures", 8, "--threads", 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "tiny.gguf"
    some_file(path)
    return path


@pytest.fixture(scope="module")
def vlm(out, file):
    llm, encoding = real.Llama(GGUF(file)), read_encoding(GGUF(file))
    adapter = load_adapter(out / "langbridge_align").set_basis(llm, encoding)
    return real.Prompted(adapter, llm, encoding, real.solved_examples(2, 0, real.as_table))


def test_solved_examples_are_true_and_use_all_answers():
    text, answers = real.solved_examples(16, 0, real.as_table), []
    assert text.count("scene:\nplace | object\n") == 16 and text.count("question: ") == 48
    for example in text.split("scene:\n")[1:]:
        table = example[:example.index("question")]
        for line in example.splitlines():
            question, _, answer = line.partition("? ")
            if answer in COLORS:
                shape = question.removesuffix(" have").split()[-1]
                assert f"| {answer} {shape}\n" in table
                answers.append(answer)
            elif answer in PLACES:
                color, shape = question.split()[-2:]
                assert f"{answer} | {color} {shape}\n" in table
    assert len(answers) == 8 and len({*answers}) >= 7
    assert text != real.solved_examples(16, 1, real.as_table)


def test_a_picture_is_the_table_of_the_words_in_its_patches(vlm):
    """Where the patches of a scene have its words, picture and text are the same tokens."""
    scene, tokens = make_scene("val", 0, 1), vlm.adapter.tokens
    words = torch.full((6, 6), tokens.index(EMPTY))
    for o in scene:
        pair = torch.tensor([tokens.index(token(o.color)), tokens.index(token(o.shape))])
        words[2 * o.row:2 * o.row + 2, 2 * o.col:2 * o.col + 2] = pair
    beta = torch.nn.functional.one_hot(words.flatten(), len(tokens)).float()[None]  # (1, N, K)

    class Words(torch.nn.Module):
        def forward(self, x):
            return beta @ vlm.adapter.E

    adapter = Words()
    adapter.tokens, adapter.weights = tokens, lambda x: beta
    (picture,) = real.Prompted(adapter, vlm.llm, vlm.encoding, "a").tables(None)
    (text,) = real.Prompted(None, vlm.llm, vlm.encoding, "a").tables([real.as_table(scene)])
    assert torch.allclose(picture, text)


def test_examples_are_read_once_and_answers_are_those_of_one_long_prompt(vlm, out, file):
    features, llm = held_out(out)["test"][:5], real.Llama(GGUF(file))  # it has read no examples
    asked = [(i, question) for i in range(5) for question in ("what is it?", "a red star?")]
    answers, (examples,) = vlm.answer(features, asked), vlm.embed(vlm.examples)
    for (i, question), answer in zip(asked, answers):
        x = torch.cat([examples, vlm.tables(features)[i], vlm.text(f"question: {question}")])
        assert vlm.encoding.decode(llm.generate(x[None], vlm.stops)[0]).strip() == answer


def test_places_of_a_linear_map_are_those_of_nearest_words(vlm, out):
    s, x = load_settings(out), held_out(out)["test"][:3]
    with torch.no_grad():
        rows = {name: real.adapters_for(s, name, vlm.llm, vlm.encoding) for name in real.MLPS}
        nearest = rows["zero_shot_nearest_words"][min(real.TEMPERATURES)]
        for mapped in rows["zero_shot_linear_map"].values():
            assert torch.equal(mapped.weights(x), nearest.weights(x))
            assert mapped(x).shape == nearest(x).shape and not torch.equal(mapped(x), nearest(x))


@pytest.fixture(scope="module")
def result(out, file):
    done = run_here("results/real.py", file, "--out", out, *FEW)
    assert done.returncode == 0 and "zero_shot_shuffled" in done.stdout, done.stderr
    return json.loads((out / "real_tiny.json").read_text(encoding="utf-8"))


def test_a_file_gets_all_rows_and_the_adapter_stays_as_it_is(result, out, file):
    assert [row["name"] for row in result["rows"]] == [*real.TEXTS, *real.BRIDGES, *real.MLPS]
    for scores in [row["scores"] for row in result["rows"]] + [result["chance"], result["majority"]]:
        assert {"vqa", "vqa_by_type", "caption_f1", "pope_acc"} <= {*scores}
    assert result["llm"]["params"] == sum(w.numel() for w in real.Llama(GGUF(file)).weights.values())
    have, of = result["llm"]["words"]
    assert of / 2 < have <= of == len(load_adapter(out / "langbridge_align").tokens)
    tried = result["examples"]["vqa_on_val"]
    assert tried[str(result["examples"]["chosen"])] == max(tried.values()) and len(tried) == 6
    assert result["adapter_hash"]["before"] == result["adapter_hash"]["after"]


def test_a_second_run_makes_nothing_again_and_another_file_of_this_name_is_refused(
        result, out, file, tmp_path):
    again = run_here("results/real.py", file, "--out", out, *FEW)
    assert again.returncode == 0 and "done" not in again.stdout
    assert json.loads((out / "real_tiny.json").read_text(encoding="utf-8")) == result
    some_file(tmp_path / "tiny.gguf", seed=1)
    other = run_here("results/real.py", tmp_path / "tiny.gguf", "--out", out, *FEW)
    assert_refused(other, "made with other settings (file was ")


@pytest.mark.parametrize("args, says", [
    (["nowhere.gguf"], "there is no file"),
    (["PICTURE"], "it is no GGUF file"),
    (["FILE", "--ask", "what?"], "which picture?"),
    (["FILE", "--image", "PICTURE", "--ask", "\x04"], "no token of this LLM"),
    (["FILE", "--image", "PICTURE", "--ask", "<|end|>"], "is a special token"),
    (["FILE", "--image", "PICTURE", "--shots", "100"], "too many for this LLM (600)"),
    (["FILE", "--shots", "0"], "expected 1 to 100"),
    (["FILE", "--image", "PICTURE", "--ask", "what color is the circle?"], "")])
def test_a_picture_is_answered_and_what_cannot_be_asked_refused(out, file, picture, tmp_path, args, says):
    paths = {"PICTURE": picture, "FILE": file}
    if "600" in says:
        paths["FILE"] = tmp_path / "short.gguf"
        some_file(paths["FILE"], llama__context_length=600)
    done = run_here("results/real.py", *(paths.get(a, a) for a in args), "--out", out, *FEW[4:])
    if says:
        return assert_refused(done, says)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
