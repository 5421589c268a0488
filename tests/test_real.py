"""A LangBridge on a real LLM: what it reads, and the command, on a tiny GGUF file."""
import copy
import re
from unittest.mock import Mock

import pytest
import torch
from conftest import assert_refused, run_here
from test_gguf import some_file

from adapter import EMPTY, token
from data.files import read_json
from data.gguf import GGUF, read_encoding
from data.world import make_scene
from evaluate import held_out, load_vlm
from model import GPT
from results import real

SCRIPT, FEW = "results/real.py", ["--shots", 2, "--pictures", 8, "--threads", 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "tiny.gguf"
    some_file(path)
    return path


@pytest.fixture(scope="module")
def vlm(out, file):
    llm, encoding = real.Llama(GGUF(file)), read_encoding(GGUF(file))
    adapter = load_vlm(out, "langbridge_align")[1].adapter.set_basis(llm, encoding)
    return real.Prompted(adapter, llm, encoding, real.solved_examples(2, 0, real.as_table))


def test_solved_examples_are_true_and_use_all_answers():
    text, answers = real.solved_examples(16, 0, real.as_table), set()
    assert text.count("scene:\nplace | object\n") == 16 and text.count("question: ") == 48
    for example in text.split("scene:\n"):
        for shape, answer in re.findall(r"color .*?(\w+)(?: have)?\? (\w+)\n", example):
            assert f"| {answer} {shape}\n" in example
            answers.add(answer)
    assert len(answers) >= 7 and text != real.solved_examples(16, 1, real.as_table)


def test_a_picture_is_the_table_of_the_words_in_its_patches(vlm):
    """Where the patches of a scene have its words, picture and text are the same tokens."""
    scene, adapter = make_scene("val", 0, 1), copy.deepcopy(vlm.adapter)
    words = torch.full((6, 6), adapter.tokens.index(EMPTY))
    for o in scene:
        pair = [adapter.tokens.index(token(word)) for word in o.pair]
        words[2 * o.row:2 * o.row + 2, 2 * o.col:2 * o.col + 2] = torch.tensor(pair)
    beta = torch.nn.functional.one_hot(words.flatten(), len(adapter.tokens))[None].float()
    adapter.weights = Mock(return_value=beta)  # (1, N, K)
    (picture,) = real.Prompted(adapter, vlm.llm, vlm.encoding, "").tables(None)
    (text,) = real.Prompted(None, vlm.llm, vlm.encoding, "").tables([real.as_table(scene)])
    assert torch.allclose(picture, text)


def test_examples_are_read_once_and_answers_are_those_of_one_long_prompt(vlm, out, file):
    features, llm = held_out(out)["test"][:5], real.Llama(GGUF(file))  # it has read no examples
    asked = [(i, question) for i in range(5) for question in ("what is it?", "a red star?")]
    answers, (examples,) = vlm.answer(features, asked), vlm.embed(vlm.examples)
    for (i, question), answer in zip(asked, answers):
        x = torch.cat([examples, vlm.tables(features)[i], vlm.text(f"question: {question}")])
        assert vlm.encoding.decode(llm.generate(x[None], vlm.stops)[0]).strip() == answer


def test_a_file_gets_all_rows_once_and_another_of_this_name_is_another_llm(
        out, file, tmp_path, monkeypatch):
    monkeypatch.setattr(GPT.generate.__wrapped__, "__defaults__", (3, None))  # short answers
    first, again = (run_here(SCRIPT, file, "--out", out, *FEW) for _ in range(2))
    assert "/zero_shot_shuffled: done" in first.stdout and "done" not in again.stdout
    assert "| zero-shot LangBridge | " in first.stdout, first.stderr
    result = read_json(out / f"real_{real.known_as(file)}.json")
    rows = {row["name"]: row for row in result["rows"]}
    assert [*rows] == [*real.TEXTS, *real.BRIDGES, *real.MLPS]
    assert result["adapter_hash"] == rows["zero_shot_langbridge"]["hash"]
    tried = rows["reads_list"]["tried"]
    assert tried[str(rows["reads_list"]["chosen"])] == max(tried.values()) and len(tried) == 6
    some_file(tmp_path / "tiny.gguf", seed=1)
    assert real.known_as(tmp_path / "tiny.gguf") != real.known_as(file)


@pytest.mark.parametrize("args, says", [
    (["PICTURE"], "it is no GGUF file"), (["FILE", "--ask", "what?"], "which picture?"),
    (["FILE", "--image", "PICTURE", "--ask", "\x04"], "no token of this LLM"),
    (["FILE", "--image", "PICTURE", "--ask", "<|end|>"], "'<|end|>' is a special token"),
    (["SHORT", "--image", "PICTURE"], "tokens are too many for this LLM (600)"),
    (["FILE", "--image", "PICTURE", "--ask", "what color is the circle?"], "")])
def test_a_picture_is_answered_and_what_cannot_be_asked_refused(out, file, picture, args, says):
    paths = {"PICTURE": picture, "FILE": file, "SHORT": picture.with_name("short.gguf")}
    some_file(paths["SHORT"], llama__context_length=600)
    done = run_here(SCRIPT, *(paths.get(a, a) for a in args), "--out", out, "--threads", 1)
    if says:
        return assert_refused(done, says)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
