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
def files(tmp_path_factory):
    """A LLaMA and a Gemma."""
    folder = tmp_path_factory.mktemp("real")
    for name, family in (("tiny.gguf", "llama"), ("other.gguf", "gemma3")):
        some_file(folder / name, family)
    return folder / "tiny.gguf", folder / "other.gguf"


@pytest.fixture(scope="module", params=[0, 1], ids=["llama", "gemma3"])
def vlm(out, files, request):
    file = GGUF(files[request.param])
    llm, encoding = real.OpenLLM(file), read_encoding(file)
    adapter = load_vlm(out, "langbridge_align")[1].adapter.set_basis(llm, encoding)
    return real.Prompted(adapter, llm, encoding, 2)


def test_solved_examples_are_true_and_use_all_answers():
    text, answers = real.solved_examples(False, 16, 0, real.as_table), set()
    assert text.count("scene:\nplace | object\n") == 16 and text.count("question: ") == 48
    for example in text.split("scene:\n"):
        for answer, shape in re.findall(r"color .*\? (\w+) (\w+)\n", example):
            assert f"| {answer} {shape}\n" in example
            answers.add(answer)
    assert len(answers) >= 7 and text != real.solved_examples(False, 16, 1, real.as_table)
    assert real.solved_examples(True, 4, 0, real.as_table).count("describe the scene. a ") == 4


def test_a_picture_is_the_table_of_the_words_in_its_patches(vlm):
    """Where the patches of a scene have its words, picture and text are the same tokens."""
    scene, adapter = make_scene("val", 0, 1), copy.deepcopy(vlm.adapter)
    words = torch.full((6, 6), adapter.tokens.index(EMPTY))
    for o in scene:
        pair = [adapter.tokens.index(token(word)) for word in o.pair]
        words[2 * o.row:2 * o.row + 2, 2 * o.col:2 * o.col + 2] = torch.tensor(pair)
    beta = torch.nn.functional.one_hot(words.flatten(), len(adapter.tokens))[None].float()
    adapter.weights = Mock(return_value=beta)  # (1, N, K)
    for write in (real.as_table, lambda scene: raster_of(words, adapter)):
        how = write if write is real.as_table else real.as_raster
        (picture,) = real.Prompted(adapter, vlm.llm, vlm.encoding, 2, 0, how).scenes(beta)
        (text,) = real.Prompted(None, vlm.llm, vlm.encoding, 2).scenes([write(scene)])
        assert torch.allclose(picture, text)


def raster_of(words, adapter):
    return "".join("".join(adapter.tokens[i].decode() for i in row) + "\n" for row in words)


def test_examples_are_read_once_and_answers_are_those_of_one_long_prompt(vlm, out, files):
    features, llm = held_out(out)["test"][:5], copy.copy(vlm.llm)
    llm.begun, llm.before = [], {}  # it has read no examples
    for question in ("what is it?", "what do you see?"):
        examples = vlm.embed(vlm.examples(question == "what do you see?"))[0]
        for i, answer in enumerate(vlm.answer(features, [(i, question) for i in range(5)])):
            text = vlm.text(f"question: {question}")
            x = torch.cat([examples, vlm.scenes(features)[i], text])
            assert vlm.encoding.decode(llm.generate(x[None], vlm.stops)[0]).strip() == answer


def test_likelihoods_are_those_of_whole_texts_and_what_pictures_add_decides(vlm, out):
    scenes, asked = real.exam("test", 3)
    features = held_out(out)["test"][:3]
    for (i, qa), likely in zip(asked, vlm.likely(features, asked)):
        assert [*likely] == real.OPTIONS[qa.type]
        before = torch.cat([vlm.scenes(features)[i], vlm.text(f"question: {qa.question}")])
        for answer in [*likely][:2]:
            ids = vlm.ids(f" {real.in_words(qa, answer)}")
            x = torch.cat([before, vlm.embed(ids)[0]])[None]
            logp = vlm.llm.forward(x)[0, len(before) - 1:-1].log_softmax(-1)
            whole = logp[range(len(ids)), ids].sum().item()
            assert likely[answer] == pytest.approx(whole, abs=1e-3)
    assert real.choose([{"red": -2.0, "blue": -1.8}], [{"red": -3.0, "blue": -1.0}]) == ["red"]


def test_all_files_get_all_rows_once_under_names_of_their_own(out, files, tmp_path, monkeypatch):
    monkeypatch.setattr(GPT.generate.__wrapped__, "__defaults__", (3, None))  # short answers
    first, again = (run_here(SCRIPT, *files, "--out", out, *FEW) for _ in range(2))
    assert "/set1: done" in first.stdout and "done" not in again.stdout, first.stderr
    assert "| zero-shot LangBridge | " in first.stdout
    names = [*map(real.known_as, files), *real.OURS]
    for name in names:
        result = read_json(out / f"real_{name}.json")
        assert [row["name"] for row in result["rows"]] == [
            "reads_list", "nothing", *real.BRIDGES, *real.MLPS]
        assert result["chance"]["vqa_by_type"]["color"] == 1 / 8
        talk = [line.split(" | ")[0] for line in result["zero_shot_langbridge_says"]]
        assert talk.count("0") == talk.count("1") == 5 and {*talk} == {*map(str, range(8))}
        for row in result["rows"]:
            for kind, of_kind in row["scores"]["vqa_by_type"].items():
                low, high = row["scores"]["intervals"][kind]
                assert low <= of_kind <= high
    some_file(tmp_path / files[0].name, seed=1)
    assert real.known_as(tmp_path / files[0].name) not in names


@pytest.mark.parametrize("args, says", [
    (["PICTURE"], "it is no GGUF file"), (["FILE", "--ask", "what?"], "which picture?"),
    (["FILE", "--image", "PICTURE", "--ask", "\x04"], "no token of this LLM"),
    (["FILE", "--image", "PICTURE", "--ask", "<|end|>"], "'<|end|>' is a special token"),
    (["SHORT", "--image", "PICTURE"], "tokens are too many for this LLM (300)"),
    (["FILE", "--image", "PICTURE", "--ask", "what color is the circle?"], ""),
    (["OTHER", "--image", "PICTURE"], "")])
def test_a_picture_is_answered_and_what_cannot_be_asked_refused(out, files, picture, args, says):
    paths = {"PICTURE": picture, "FILE": files[0], "OTHER": files[1],
             "SHORT": picture.with_name("short.gguf")}
    some_file(paths["SHORT"], llama__context_length=300)
    done = run_here(SCRIPT, *(paths.get(a, a) for a in args), "--out", out, "--threads", 1)
    if says:
        return assert_refused(done, says)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
