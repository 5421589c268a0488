"""A real LLM listens: solved examples, a picture as a list, the move to a GGUF file."""
from functools import partial

import pytest
import torch
from conftest import assert_refused, run_here
from test_gguf import some_file, some_reader

import transfer
from adapter import NOTHING, Placed, load_adapter, shown
from data.corpus import listing, solved_examples
from data.files import read_json
from data.settings import load_settings
from data.world import make_scene
from evaluate import held_out, load_real, open_data
from model import Prompted, Reader, load_llm
from results import tellings
from results.report import tellings_table
from transfer import REAL_ROWS, Move, ways


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return some_reader(tmp_path_factory.mktemp("real") / "tiny.gguf")


@pytest.fixture(scope="module")
def moved(out, file):
    """A VLM whose adapter was moved to the file's LLM."""
    llm, encoding = load_llm(file)
    adapter = load_adapter(out / "langbridge_align").set_basis(llm, encoding)
    return Prompted(adapter, llm, encoding, open_data(out).examples(2, 0, "list"))


# ---- what it reads -------------------------------------------------------------------------------

def test_solved_examples_are_true_and_use_all_answers():
    text, answers = solved_examples(16, 0, listing), []
    assert text.count("scene:\nplace | object\n") == 16 and text.count("question: ") == 48
    for example in text.split("scene:\n")[1:]:
        said = example[:example.index("question")]
        for line in example.splitlines():
            question, _, answer = line.partition("? ")
            if answer in ("red", "blue", "green", "yellow", "purple", "cyan", "brown", "pink"):
                shape = question.split()[-1] if "have" not in question else question.split()[-2]
                assert f"{answer} {shape}\n" in said
                answers.append(answer)
    assert len(set(answers)) >= 7 and len(answers) <= 10
    assert solved_examples(2, 0, listing) != solved_examples(2, 1, listing)


def test_a_picture_is_told_like_a_list_of_words(moved, out):
    """Where the patches of a scene say its words, a picture and the text are the same tokens."""
    scene = make_scene("val", 0, 1)
    adapter, encoding = moved.adapter, moved.encoding
    words = torch.full((1, 36), adapter.tokens.index(NOTHING))
    for o in scene:
        top, left = 2 * o.row, 2 * o.col
        for k, word in enumerate((o.color, o.shape)):
            words[0, [6 * top + left + k, 6 * top + left + 6 + k]] = adapter.tokens.index(
                f" {word}".encode())
    said = torch.nn.functional.one_hot(words, len(adapter.tokens)).float()  # (1, N, K)

    class Says(torch.nn.Module):
        tokens = adapter.tokens

        def weights(self, x):
            return said

        def forward(self, x):
            return said @ adapter.E

    vlm = Prompted(Says(), moved.llm, encoding, "")
    (told,) = vlm.told(None)
    (text,) = Reader(moved.llm, encoding, "").told([listing(scene)])
    assert torch.allclose(told, text)


def test_examples_are_read_once_and_change_nothing_else(moved, out):
    """Answers with the shared cache are those of one long prompt."""
    features = held_out(out)["test"][:5]
    asked = [(i, question) for i in range(5)
             for question in ("what color is the circle?", "is there a red star?")]
    answers, llm, encoding = moved.answer(features, asked), moved.llm, moved.encoding
    for (i, question), answer in zip(asked, answers):
        text = moved.embed(encoding.encode(f"question: {question}"))
        x = torch.cat([moved.picture(features[i:i + 1]), text], dim=1)
        assert encoding.decode(llm.generate(x, moved.stops)[0]).strip() == answer


def test_a_reader_with_nothing_to_read_answers_all_pictures_alike(moved):
    reader = Reader(moved.llm, moved.encoding, "scene:\nquestion: what do you see? red\n")
    one, other = reader.answer(["", ""], [(0, "what is it?"), (1, "what is it?")])
    assert one == other


# ---- rows ----------------------------------------------------------------------------------------

def test_what_is_shown_of_a_stitched_mlp_is_what_it_says_as_words(out, file):
    s = load_settings(out)
    llm, encoding = load_llm(file)
    move = Move(s, "llm_source", str(file), own=True, shots=2, pictures=4, reads=str(out))
    row = next(row for row in REAL_ROWS if row.name == "zero_shot_stitched_mlp")
    see = partial(Prompted, examples="")
    adapter, ridge = transfer.bring(s, row, move, llm, encoding, see, 4)
    assert isinstance(adapter, Placed) and ridge in transfer.RIDGES
    x = held_out(out)["test"][:3]
    sees = ways(s, row._replace(start="as_words"), move, llm, encoding)[0.03]
    assert torch.equal(shown(adapter, x), shown(sees, x))
    assert adapter(x).shape == (3, 36, llm.config.C)


@pytest.fixture(scope="module")
def result(out, file):
    done = run_here("transfer.py", "--out", out, "--target", file, "--shots", 2, "--pictures", 8,
                    "--steps", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return read_json(out / "transfer_tiny.json")


def test_a_move_to_a_file_has_its_rows_and_says_what_the_llm_is(result, out, file):
    names = [row["name"] for row in result["rows"]]
    assert {"reads_rasters", "reads_sentences", "words_as_text", "zero_shot_langbridge",
            "zero_shot_langbridge_after_instruct", "zero_shot_wrong_picture", "zero_shot_shuffled",
            "zero_shot_stitched_mlp", "nothing", "transferred_langbridge", "native_mlp",
            "native_langbridge", "fresh_mlp"} <= set(names)
    llm, _ = load_llm(file)
    assert result["llm"]["params"] == sum(p.numel() for p in llm.parameters())
    assert result["llm"]["vocab"] == llm.config.V and "chance" in result
    have, of = result["llm"]["words"]
    assert of / 2 < have <= of == len(load_adapter(out / "langbridge_align").tokens)
    for row in result["rows"]:
        assert {"vqa", "color", "shape", "where", "count", "exists"} <= set(row["scores"])
        assert row["stage2"] == (row["name"] in result["curves"])
    before, after = result["adapter_hash"]["before"], result["adapter_hash"]["after"]
    assert before == after


def test_a_second_run_makes_nothing_again(out, file, result):
    done = run_here("transfer.py", "--out", out, "--target", file, "--shots", 2, "--pictures", 8,
                    "--steps", 2, "--threads", 1)
    assert done.returncode == 0 and "reads_list" in done.stdout
    assert read_json(out / "transfer_tiny.json") == result


def test_a_tuned_llm_is_loaded_from_its_folder(out, file, result):
    folder = out / "transfer" / "tiny" / "seed0" / "steps2" / "rate1"
    tuned, encoding = load_llm(folder / "from_llm_source" / "transferred_langbridge")
    untouched, its = load_llm(file)
    assert not torch.equal(tuned.embedding.weight, untouched.embedding.weight)
    assert encoding.encode(" red circle") == its.encode(" red circle")


# ---- asking it -----------------------------------------------------------------------------------

def test_a_real_llm_can_be_asked_traced_and_mapped(out, file, picture, tmp_path):
    said = run_here("evaluate.py", "--out", out, "--image", picture, "--llm", file, "--ask",
                    "what color is the circle?", "--map", tmp_path / "map.png")
    assert said.returncode == 0 and (tmp_path / "map.png").exists(), said.stderr
    said = run_here("evaluate.py", "--out", out, "--image", picture, "--llm", file, "--trace")
    assert said.returncode == 0 and "Prompted.picture" in said.stdout, said.stderr


@pytest.mark.parametrize("args, says", [
    (["--image", "PICTURE", "--llm", "nowhere.gguf"], "there is no file"),
    (["--image", "PICTURE", "--llm", "FEW"], "share too little"),
    (["--image", "PICTURE", "--llm", "FILE", "--model", "mlp_align"], "needs a LangBridge"),
    (["--image", "PICTURE", "--llm", "FILE", "--ask", "\x04"], "no token of this LLM"),
    (["--image", "PICTURE", "--llm", "PICTURE"], "it is no GGUF file"),
    (["--image", "PICTURE", "--llm", "FILE", "--ask", "<|end|>"], "is a special token"),
    (["--llm", "FILE"], "which picture?"),
])
def test_what_cannot_be_asked_is_refused(out, file, picture, tmp_path, args, says):
    few = tmp_path / "few.gguf"
    some_file(few)
    paths = {"PICTURE": picture, "FILE": file, "FEW": few}
    assert_refused(run_here("evaluate.py", "--out", out, *(paths.get(a, a) for a in args)), says)


@pytest.mark.parametrize("args, says", [
    (["--target", "nowhere.gguf"], "there is no file"),
    (["--target", "FILE", "--reverse"], "--reverse and --corpus"),
    (["--target", "FILE", "--shots", "0"], "expected 1 to 1000000"),
    (["--target", "FILE", "--pictures", "1"], "expected 4 to 1000000"),
])
def test_a_move_that_cannot_be_made_is_refused(out, file, args, says):
    args = [file if a == "FILE" else a for a in args]
    assert_refused(run_here("transfer.py", "--out", out, *args), says)


def test_the_examples_that_transfer_has_chosen_are_used(out, file, result, monkeypatch):
    seen = []
    monkeypatch.setattr("evaluate.SHOTS", 2)
    monkeypatch.setattr("data.dataset.ShapeData.examples",
                        lambda data, n, seed, how: seen.append((n, seed, how)) or "")
    load_real(out, "langbridge_align", file)
    assert seen == [(2, result["examples"]["chosen"], "list")]


def test_ways_to_tell_a_scene_are_compared_on_the_same_questions(file, monkeypatch):
    few = {title: (tell, 2) for title, (tell, _) in tellings.WAYS.items()}
    monkeypatch.setattr(tellings, "WAYS", few)
    monkeypatch.setattr(tellings, "SEEDS", [0])
    found = tellings.compare(*load_llm(file), pictures=2)
    assert len(found) == 10 and all(list(by)[0] == "vqa" for by in found.values())
    table = tellings_table({"llm": "tiny", "pictures": 2, "ways": found})
    assert all(title in table for title in tellings.WAYS)
