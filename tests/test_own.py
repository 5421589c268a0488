"""Pictures and conversations from files: read, refused or skipped, learned from, moved, scored."""
import json
import random
import re
import shutil
from collections import Counter
from functools import partial
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, assert_refused, losses_of, run_here
from PIL import Image

import data.export as export_module
from data.conversations import (content_words, normal, read_conversations, read_passages,
                                token_f1)
from data.corpus import document
from data.dataset import ShapeData
from data.files import Refused, read_json
from data.own import OwnData, scattered, varied
from data.scoring import benchmark
from data.world import draw, keywords, make_scene
from results import exported

SIZE = 24


def said(*turns):
    """Messages of [(question, answer), ..]"""
    messages = []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return messages


def entry(name, *turns, **more):
    return {"id": name, "conversations": said(*turns), **more}


def write(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder of pictures, and train.json and test.json about them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures" / "b").mkdir(parents=True)
    for name, numbers in (("train", range(80)), ("test", range(100, 112))):
        entries = []
        for i in numbers:
            scene, image = make_scene("train", 5, i), f"b/{i}.png"
            Image.fromarray(draw(scene, f"own/{i}", SIZE)).save(folder / "pictures" / image)
            turns = [("<image>\nWhat is this?", f"A{keywords(scene[:1])}.")]
            if i % 2:
                turns.append((f"how many?{' again' * (i % 3)}", str(len(scene))))
            entries.append(entry(str(i), *turns, image=image))
        write(folder / f"{name}.json", entries)
    return folder


def make_data(files, path=None, **settings):
    settings = {"size": SIZE, "side": 3} | settings
    return OwnData(path or files / "train.json", files / "pictures", files / "cache", **settings)


def flags_of(files, out):
    return ["--preset", "smoke", "--device", "cpu", "--threads", 1, "--out", out,
            "--data", files / "train.json", "--images", files / "pictures",
            "--vit_size", 24, "--vit_patch", 4]


# ---- reading -------------------------------------------------------------------------------------

def test_an_entry_becomes_turns_in_lower_case(tmp_path):
    path = write(tmp_path / "a.json", [
        entry("x", ("What is this?\n<image>", "A  Red\nFox."), ("Color?", "Red"), image="a.png"),
        entry("y", ("scene:\n fox .\n\nwhat is there?", "a fox")), entry("z", ("<image>", "b"))])
    (fox, text, bare), problems = read_conversations(path)
    assert fox == ("x", "a.png", "", [("what is this?", "a red fox."), ("color?", "red")])
    assert text == ("y", None, "scene:\n fox .\n\n", [("what is there?", "a fox")])
    assert bare.turns == [("describe the picture.", "b")] and len(problems) == 0


def test_json_lines_and_captions_of_coco_are_read_too(tmp_path):
    lines = [entry(str(i), ("what?", "a fox"), image=f"{i}.png") for i in range(3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    entries, _ = read_conversations(path)
    assert [e.image for e in entries] == ["0.png", "1.png", "2.png"]
    coco = {"images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
            "annotations": [{"image_id": 7, "caption": "A fox."},
                            {"image_id": 7, "caption": "Another."}]}
    (only,), problems = read_conversations(write(tmp_path / "coco.json", coco))
    assert only.image == "7.jpg" and only.turns == [("describe the picture.", "a fox.")]
    assert problems.names == {"an empty answer": ["8.jpg"]}


BAD = {
    "an empty answer": entry("bad", ("what?", " \n"), image="b/1.png"),
    "the role 'system', not human or gpt": {
        "id": "bad", "conversations": [{"from": "system", "value": "be kind"}], "image": "b/1.png"},
    "human and gpt do not take turns": {
        "id": "bad", "conversations": [{"from": "gpt", "value": "a fox"}], "image": "b/1.png"},
    "a question without an answer": {
        "id": "bad", "conversations": [{"from": "human", "value": "what?"}], "image": "b/1.png"},
    "a message without a text": {
        "id": "bad", "conversations": [{"from": "human", "value": 7}], "image": "b/1.png"},
    "a text too long for the context": entry("bad", ("what? " * 100, "a fox"), image="b/1.png"),
    "no list of conversations": {"id": "bad", "image": "b/1.png"},
    "the image is no file name": entry("bad", ("what?", "a fox"), image=["b/1.png"]),
    "bytes that are no UTF-8": entry("bad", ("what?", "a \ud800 fox"), image="b/1.png"),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_entry_is_left_out_and_named(why, tmp_path):
    good = [entry(str(i), ("what?", "a fox"), image="b/2.png") for i in range(3)]
    entries, problems = read_conversations(write(tmp_path / "a.json", [*good, BAD[why]]))
    assert len(entries) == 3 and problems.total == 4
    (line,) = problems.lines()
    assert line == f"{why}: 1 (bad)"


def test_bytes_that_are_no_utf8_and_a_broken_line_cost_an_entry_each(tmp_path):
    good = json.dumps(entry("a", ("what?", "a fox"), image="b/2.png")).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([good, good.replace(b"fox", b"f\xffx"), good[:40], good]))
    entries, problems = read_conversations(path)
    assert len(entries) == 2
    assert problems.names == {"bytes that are no UTF-8": ["a"], "no JSON": ["line 3"]}


@pytest.mark.parametrize("text, says", [
    ('[{"id": "1", "conversations": [', "as JSON"), ("", "as JSON"),
    ("[]", "holds no conversation"),
    ("[" * 100_000, "as JSON"), ("42", "holds no conversation"),
    ('{"images": [], "annotations": 7}', "COCO")])
def test_a_file_that_breaks_off_or_holds_nothing_is_refused(text, says, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=says):
        read_conversations(path)
    with pytest.raises(Refused, match="cannot read"):
        read_conversations(tmp_path / "none.json")


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert normal("The  Red, fox!") == normal("a red fox") == ["red", "fox"]
    assert token_f1("a red fox", "the red dog.") == pytest.approx(0.5)
    assert token_f1("", "a fox") == 0.0 and token_f1("a", "the") == 1.0
    assert content_words("there is a red fox at the top.") == ["red", "fox", "top"]


# ---- pictures ------------------------------------------------------------------------------------

def test_odd_pictures_are_read_and_broken_ones_left_out(files, tmp_path, capsys):
    shutil.copytree(files / "pictures", tmp_path / "pictures")
    odd = tmp_path / "pictures" / "odd"
    odd.mkdir()
    Image.new("RGB", (1, 1), "red").save(odd / "dot.png")
    Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(odd / "cmyk.jpg")
    Image.fromarray(np.full((9, 9), 65535, dtype=np.uint16)).save(odd / "deep.png")
    Image.new("1", (20_000, 20_000)).save(odd / "huge.png")
    (odd / "half.png").write_bytes((tmp_path / "pictures/b/1.png").read_bytes()[:200])
    (odd / "text.png").write_text("no picture", encoding="utf-8")
    names = ["dot.png", "cmyk.jpg", "deep.png", "huge.png", "half.png", "text.png", "none.png"]
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    entries += [entry(name, ("what?", f"odd {name}"), image=f"odd/{name}") for name in names]
    path = write(tmp_path / "train.json", entries)
    data = OwnData(path, tmp_path / "pictures", tmp_path / "cache", size=SIZE, side=3)
    printed = capsys.readouterr().out
    assert "4 of 87 entries are left out" in printed
    assert "a missing picture: 1 (odd/none.png)" in printed
    assert "a picture that cannot be read: 3 (odd/huge.png, odd/half.png, odd/text.png)" in printed
    read = {e.image for split in data.SPLITS for e in data.of[split]}
    assert {"odd/dot.png", "odd/cmyk.jpg", "odd/deep.png"} <= read
    red = data.array[data.row["odd/cmyk.jpg"]][SIZE // 2, SIZE // 2]
    assert red[0] > 180 and red[1] < 80
    assert data.array[data.row["odd/deep.png"]].min() == 255


def test_too_much_that_is_bad_is_refused_before_training(files, tmp_path):
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    bad = [entry(str(i), ("what?", ""), image="b/1.png") for i in range(8)]
    path = write(tmp_path / "train.json", entries + bad)
    with pytest.raises(Refused, match="8 of 88 .*an empty answer: 8 .*--allow-bad"):
        make_data(files, path)
    assert make_data(files, path, allow_bad=True).count("train") > 50


def test_pictures_are_decoded_once_and_again_when_one_changes(files, tmp_path):
    shutil.copytree(files / "pictures", tmp_path / "pictures")

    def array():
        return OwnData(files / "train.json", tmp_path / "pictures", tmp_path / "cache",
                       size=SIZE, side=3).array

    first = array()
    assert isinstance(first, np.memmap)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    array()
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    before = np.array(first)
    Image.new("RGB", (50, 50), "blue").save(tmp_path / "pictures" / "b" / "0.png")
    assert (np.array(array()) != before).any((1, 2, 3)).sum() == 1
    for path in (tmp_path / "cache").glob("*.npy"):  # half a file is made again
        path.write_bytes(path.read_bytes()[:1000])
    assert len(array()) == len(before)


# ---- splits and texts ----------------------------------------------------------------------------

def test_a_picture_is_on_one_side_whatever_its_name(files, tmp_path):
    shutil.copytree(files / "pictures", tmp_path / "pictures")
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    for i in range(40):
        shutil.copy(tmp_path / "pictures" / "b" / f"{i}.png", tmp_path / "pictures" / f"{i}.png")
        entries.append(entry(f"copy {i}", ("what?", "a copy"), image=f"{i}.png"))
    path = write(tmp_path / "train.json", entries)
    data = OwnData(path, tmp_path / "pictures", tmp_path / "cache", size=SIZE, side=3)
    sides = [{data.mark[e.image] for e in data.of[split]} for split in data.SPLITS]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    held = OwnData(path, tmp_path / "pictures", tmp_path / "cache", val=files / "test.json",
                   size=SIZE, side=3)
    assert {e.image for e in held.of["train"]} == {e["image"] for e in entries}
    assert sorted(e.name for split in held.EXAM for e in held.of[split]) == \
        sorted(map(str, range(100, 112)))


def test_source_and_target_read_different_halves(files):
    data = make_data(files)
    halves = [{e.name for e in data.half(dialect)} for dialect in ("source", "target")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {e.name for e in data.of["train"]}
    held = {e.turns[0] for split in data.EXAM for e in data.of[split]}
    assert len(held) > 5
    captions = Counter(e.turns[0][1] for e in data.of["train"])
    for dialect in ("source", "target"):
        read = {e.turns[0][1] for e in data.half(dialect)}
        assert read >= {caption for caption, times in captions.items() if times > 1}
    assert max(captions.values()) > 1


def test_a_grid_says_each_word_and_nothing_else():
    for seed in range(50):
        grid = scattered(["red", "fox"], 6, random.Random(seed))
        rows = [row.split() for row in grid.splitlines()]
        assert [len(row) for row in rows] == [6] * 6
        assert {word for row in rows for word in row} == {"red", "fox", "."}
    assert set(scattered([], 3, random.Random(0)).split()) == {"."}


def test_texts_that_give_scenes_are_read_instead_of_grids(files, tmp_path):
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    texts = [entry(f"t{i}", (f"scene:\n fox {i}\n\nwhat is there?", f"fox {i}"),
                   ("how many?", "one")) for i in range(60)]
    data = make_data(files, write(tmp_path / "train.json", entries + texts))
    assert data.gives_scenes
    pieces = data.document("source", 0, 1, 0.5, turns=8, captions=0.3)
    assert pieces[0] == ("<|bos|>scene:\n", 0.0) and pieces[1][0].startswith(" fox ")
    assert ("question: how many?", 0.0) in pieces and (" one\n", 1.0) in pieces


def test_twins_differ_in_one_word(files):
    data, rng = make_data(files), random.Random(0)
    for i in range(20):
        own, other = (set(data.alt_text(data.of["train"][k]).split())
                      for k in (i, data.twin(i, rng)))
        assert len(own - other) <= 1
    bags = [Counter(data.alt_text(e).split()) for e in data.of["train"]]
    have = found = 0
    for i, bag in enumerate(bags):
        near = [k for k, b in enumerate(bags) if b != bag and b.total() == bag.total()
                and (b - bag).total() == 1]
        k = data.twin(i, rng)
        assert k == i or k in near
        have, found = have + bool(near), found + (k != i)
    assert have > 20 and found > 0.8 * have


def test_pictures_are_redrawn_but_stay_where_a_text_names_a_place():
    picture = np.full((SIZE, SIZE, 3), 200, dtype=np.uint8)
    picture[9:15, 9:15] = 0
    pictures, far = np.stack([picture] * 40), [[], []]
    for k, text in enumerate([" red square top left", " red square"]):
        for other in varied(pictures, [text] * 40, random.Random(0)):
            dark = 1 - other[..., 0] / 200  # (size, size), how much of each pixel is the square
            y, x = (np.indices(dark.shape) * dark).sum((1, 2)) / dark.sum()
            assert abs(y - 11.5) < 1.5 and abs(x - 11.5) < 1.5 and other[0, 0, 0] == 200
            far[k].append(dark.sum() / 36)
    assert max(far[0]) < 1.01 and min(far[0]) > 0.99
    assert max(far[1]) > 1.5 and min(far[1]) < 0.67


def test_a_guess_is_at_chance_and_the_truth_is_right(files):
    data = make_data(files)
    pictures = {"test": data.count("test")}

    def answer(split, items):
        return [qa.answer for _, qa in items]

    def find(split, groups):
        return [next(i for i in among if data.of[split][i].turns[0][1] == true)
                for among, _, true in groups]

    scores = data.score(data.examine(answer, pictures, find))
    assert scores == dict.fromkeys(data.SCORES, 1.0)
    chance = data.chance(pictures)
    assert chance["exact_match"] < 0.5 and chance["retrieval"] < 0.6


def test_passages_are_paragraphs_of_at_most_80_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One  two.\n\n" + "word " * 100, encoding="utf-8")
    passages = read_passages((str(path),))
    assert [len(passage.split()) for passage in passages] == [2, 80, 20]
    path = tmp_path / "b.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="UTF-8"):
        read_passages((str(path),))


# ---- the commands --------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def trained(files, tmp_path_factory):
    """A finished smoke run on files, with a corpus."""
    out = tmp_path_factory.mktemp("trained") / "out"
    corpus = out.parent / "corpus.txt"
    corpus.write_text("the fox.\n\nthe dog.\n\nthe zebra.", encoding="utf-8")
    done = run_here("train.py", *flags_of(files, out), "--corpus", corpus)
    assert done.returncode == 0, done.stderr
    return out, corpus, done.stdout


def test_the_whole_run_has_scores_beside_blind_and_chance(trained):
    out, _, printed = trained
    scores = json.loads((out / "results.json").read_text(encoding="utf-8"))["vlm"]
    for who in ("blind", "chance", "majority"):
        assert set(scores[who]) >= {"exact_match", "token_f1", "caption_exact", "retrieval"}
    assert "| LangBridge, after instruct |" in printed
    words = json.loads((out / "llm_source" / "config.json").read_text(encoding="utf-8"))["words"]
    assert {"fox", "dog", "zebra"} & set(words)


def test_it_is_finished_and_other_files_are_another_run(trained, files, tmp_path):
    out, corpus, _ = trained
    done = run_here("train.py", *flags_of(files, out), "--corpus", corpus)
    assert done.returncode == 0, done.stderr
    flags = list(map(str, flags_of(files, out)))
    changed = write(tmp_path / "train.json",
                    json.loads((files / "train.json").read_text(encoding="utf-8"))[1:])
    flags[flags.index("--data") + 1] = changed
    assert_refused(run_here("train.py", *flags, "--corpus", corpus), "other settings")


def test_it_is_moved_and_scored_on_other_pictures(trained, files):
    out, _, _ = trained
    done = run_here("transfer.py", "--out", out, "--threads", 1)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "transfer.json").read_text(encoding="utf-8"))["rows"]
    assert {row["name"] for row in rows} >= {"transferred_langbridge", "native_mlp", "blind"}
    done = run_here("evaluate.py", "--out", out, "--data", files / "test.json",
                    "--images", files / "pictures")
    assert done.returncode == 0, done.stderr
    scores = json.loads((out / "evaluate_test.json").read_text(encoding="utf-8"))
    moved = "transfer/llm_target/seed0/from_llm_source/transferred_langbridge"
    assert {"langbridge_instruct", "blind_instruct", moved} <= set(scores["checkpoints"])
    assert set(scores["chance"]) == set(OwnData.SCORES)
    assert run_here("evaluate.py", "--out", out).returncode == 0


def test_a_real_llm_has_no_examples_of_other_pictures(trained, picture, tmp_path):
    out, _, _ = trained
    file = tmp_path / "any.gguf"
    assert_refused(run_here("evaluate.py", "--out", out, "--image", picture, "--ask", "what?",
                            "--llm", file), "our world")


@pytest.mark.parametrize("flags, says", [
    (["--data", "none.json"], "--images"), (["--images", "here"], "--data"),
    (["--data", "none.json", "--images", "here"], "none.json"),
    (["--val", "none.json"], "--data"), (["--corpus", "none.txt"], "none.txt"),
    (["--llm_source_tokenizer", "gpt5"], "gpt2")])
def test_settings_that_cannot_work_are_refused(flags, says, tmp_path):
    assert_refused(run_here("train.py", "--preset", "smoke", "--out", tmp_path / "out", *flags),
                   says)


def test_texts_longer_than_a_context_are_cut_and_nothing_crashes(files, tmp_path):
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    for e in entries:
        name = e["id"]
        e["conversations"] += said((f"what {name}? " * 30, "qz xj " * 300),
                                   ("and then?", "kv wq " * 300))
        e["conversations"][1]["value"] = "zq jx " * 320
    entries += [entry(f"t{i}", ("qx " * 3000 + "\nwhat?", "kq " * 600)) for i in range(40)]
    flags = list(map(str, flags_of(files, tmp_path / "out")))
    flags[flags.index("--data") + 1] = write(tmp_path / "train.json", entries)
    steps = [f"--{name}_steps={n}" for name, n in
             {"vit": 2, "llm_source": 3, "align": 2, "instruct": 3}.items()]
    done = run_here("train.py", *flags, *steps, "--llm_source_V", 300, "--llm_batch", 2,
                    "--stages", "vit,llm_source,langbridge_align,langbridge_instruct")
    assert done.returncode == 0, done.stderr


# ---- data/README.md ------------------------------------------------------------------------------

SMALL = ("--preset smoke --device cpu --threads 1 --vit_size 24 --vit_patch 4 --vit_D 32 --vit_H 4 "
         "--vit_layers 1 --vit_steps 4 --vit_batch 8 --llm_H 2 --llm_batch 2 --llm_source_V 400 "
         "--llm_source_C 32 --llm_source_layers 1 --llm_source_steps 4 --llm_target_V 400 "
         "--llm_target_C 32 --llm_target_layers 1 --llm_target_steps 4 --align_steps 4 "
         "--align_batch 4 --instruct_steps 5 --instruct_batch 4").split()


def commands(readme):
    """The commands that a page tells to type, each as [script, argument, ..]"""
    text = (ROOT / readme).read_text(encoding="utf-8").replace("\\\n", " ")
    typed = re.findall(r"^(?:python|torchrun --nproc_per_node=1) (\S+\.py.*)$", text, re.MULTILINE)
    return [line.split() for line in typed]


@pytest.fixture
def samples(files, tmp_path, monkeypatch):
    """A folder with small files of the names and formats that data/README.md has."""
    monkeypatch.chdir(tmp_path)
    entries = json.loads((files / "train.json").read_text(encoding="utf-8"))
    for folder in ("images", "train2017", "val2017"):
        shutil.copytree(files / "pictures", tmp_path / folder)
    write(tmp_path / "blip_laion_cc_sbu_558k.json",
          [entry(e["id"], ("Share a concise interpretation.\n<image>",
                           e["conversations"][1]["value"]), image=e["image"]) for e in entries])
    coco = {"images": [{"id": k, "file_name": e["image"]} for k, e in enumerate(entries)],
            "annotations": [{"image_id": k, "id": k, "caption": e["conversations"][1]["value"]}
                            for k, e in enumerate(entries)]}
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"captions_{split}2017.json", coco)
    return tmp_path


@pytest.mark.parametrize("out", ["out-llava", "out-coco"])
def test_the_commands_about_real_data_work_on_samples(out, samples):
    typed = [line for line in commands("data/README.md") if out in line]
    assert typed
    for script, *arguments in typed:
        small = SMALL if script == "train.py" else []
        done = run_here(script, *arguments, *small)
        assert done.returncode == 0, done.stderr
    assert (samples / out / "results.json").exists()


def test_a_run_on_the_world_as_files_is_like_a_run_on_the_world(out, tmp_path, monkeypatch):
    """The LLMs meet the same texts, so they learn as fast; untrained, all answer as badly."""
    monkeypatch.setattr(export_module, "TEXTS", 200)
    export_module.export(tmp_path / "world", pictures=64, test_pictures=20, size=48)
    done = run_here("train.py", "--preset", "smoke", "--device", "cpu", "--threads", 1,
                    "--out", tmp_path / "out", "--data", tmp_path / "world/train.json",
                    "--images", tmp_path / "world/pictures", "--val", tmp_path / "world/val.json",
                    "--llm_source_V", 512, "--llm_target_V", 640)
    assert done.returncode == 0, done.stderr

    for stage in ("llm_source", "llm_target", "langbridge_align", "langbridge_instruct"):
        files, built_in = losses_of(tmp_path / "out", stage), losses_of(out, stage)
        assert files == pytest.approx(built_in, rel=0.25), stage
    monkeypatch.setattr(exported, "ShapeData", partial(ShapeData, test_pictures=20))
    scores, expected = exported.examine(tmp_path / "out"), read_json(out / "results.json")["vlm"]
    for kind in ("mlp", "langbridge"):
        for stage, of_stage in scores[kind].items():
            for score in ("vqa", "caption_f1"):
                assert of_stage[score] == pytest.approx(expected[kind][stage][score], abs=0.2)


def test_the_world_as_files_is_what_the_built_in_world_is(tmp_path):
    """The same texts, and the same questions in the exam."""
    with mock.patch.object(export_module, "TEXTS", 60):
        export_module.export(tmp_path / "world", pictures=40, test_pictures=24, size=SIZE)
    data = OwnData(tmp_path / "world/train.json", tmp_path / "world/pictures", tmp_path / "cache",
                   val=tmp_path / "world/val.json", size=SIZE, side=3)
    built_in = ["".join(text for text, _ in document("source", 0, i, stories=0.0))
                for i in range(60)]
    read = ["".join(text for text, _ in data.document(dialect, 0, i, 0.5, 10, 0.3))
            for dialect in ("source", "target") for i in range(40)]
    assert sum(text in built_in for text in read) > 20
    exam = {e.image: dict(e.turns) for split in data.EXAM for e in data.of[split]}
    scenes, questions, pope = benchmark("test", 24)
    for i, qa in questions + pope:
        assert exam[f"test-{i}.png"][qa.question] == qa.answer
    for i, scene in enumerate(scenes):
        pixels = data.array[data.row[f"test-{i}.png"]]
        assert np.array_equal(pixels, draw(scene, f"test/{i}", SIZE))
    twins = [e for e in data.of["train"] if e.name.startswith("twin")]
    assert len(twins) == 80 and all(len(e.turns) == 1 for e in twins)
    with pytest.raises(Refused, match="not empty"):
        export_module.export(tmp_path / "world", 40, 24, SIZE)
