"""Pictures and conversations of your own: read or left out, dealt, decoded, scored, and the whole
chain of commands on them."""
import json
import random
import re
import shlex
import shutil

import numpy as np
import pytest
from conftest import ROOT, assert_refused, run_here
from PIL import Image

from data.files import Refused, read_json, write_json
from data.own import OwnData, open_own, read_conversations, token_f1, words_of
from data.pictures import redrawn, word_map
from data.world import draw, keywords, make_scene


def entry(name, *texts, **more):
    messages = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"id": name, "conversations": messages} | more


@pytest.fixture
def own(tmp_path):
    """A folder with pictures, and train.json and test.json about them."""
    (tmp_path / "pictures").mkdir()
    for name, numbers in (("train", range(80)), ("test", range(100, 112))):
        entries = []
        for i in numbers:
            scene = make_scene("train", 5, i)
            Image.fromarray(draw(scene, i, 24)).save(tmp_path / f"pictures/{i}.png")
            caption = f"A{keywords(scene[:1])}.{(' ' + 'Xj' * 99 + ' zq' * 400) * (i == 7)}"
            texts = ["<image>\nWhat is this?", caption, f"how many? {i % 3}", str(len(scene))]
            entries.append(entry(str(i), *texts[:2 + i % 2 * 2], image=f"{i}.png"))
        write_json(tmp_path / f"{name}.json", entries)
    return tmp_path


def make_data(own, name="train", **more):
    return OwnData(own / f"{name}.json", own / "pictures", own / "cache", size=24, side=3, **more)


# ---- reading -------------------------------------------------------------------------------------

GOOD = entry("x", "What?\n<image>", "A\x85Re\u0301d\u2028Fox.", "<Image>", "<|BOS|>", image="a.png")
TURNS = [("what?", "a réd fox."), ("describe the picture.", "<|bos|>")]
LINES = 2 * (json.dumps(GOOD, ensure_ascii=False) + "\n") + "\n"


@pytest.mark.parametrize("text, encoding", [
    (json.dumps([GOOD, GOOD], indent=2), "utf-8-sig"), (LINES, "utf-8"), (LINES, "utf-16")])
def test_lists_and_json_lines_become_turns_in_lower_case(text, encoding, tmp_path):
    (tmp_path / "a").write_text(text, encoding=encoding)
    assert read_conversations(tmp_path / "a", 400) == ([("a.png", TURNS)] * 2, {})


@pytest.mark.parametrize("why, bad", [
    ("no image (the name of one file)", entry("bad", "<image>?", "a fox", images=["a.png"])),
    ("a picture in base64, not its file's name", entry("bad", "?", "a", image="data:i" * 200)),
    ("an empty answer", entry("bad", "what?", " \n", image="a.png")),
    ("a question too long", entry("bad", "what? " * 100, "a fox", image="a.png")),
    ("human and gpt do not take turns", entry("bad", "what?", image="a.png")),
    ("bytes that are no UTF-8", entry("bad", "a \ud800?", "a fox", image="a.png")),
    ("not in LLaVA's format", {"id": "bad", "image": "a.png", "conversations": [{"value": 7}]})])
def test_an_entry_that_cannot_be_used_is_named(why, bad, tmp_path):
    write_json(tmp_path / "a", [GOOD, bad])
    assert read_conversations(tmp_path / "a", 400) == ([("a.png", TURNS)], {why: ["'bad'"]})


@pytest.mark.parametrize("text, says", [
    ('[{"id": "1", "conversations": [', "it was cut"), ("[" * 100_000, "as JSON"), ("", "empty"),
    ('{"image": "a.png"}\n{"image"', "line 2"), ("42", "LLaVA's format: 1 .entry 1"),
    ('{\n"images": [\n{"id": 7},\n', "line 4 .*it was cut"),
    (json.dumps({"images": [], "annotations": []}, indent=1), "1 .entry 1.*see data/README")])
def test_a_file_that_breaks_off_or_holds_nothing_is_refused(text, says, tmp_path):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=says):
        read_conversations(tmp_path / "a.json", 400)


def test_answers_are_compared_without_case_articles_and_what_is_around_words():
    for text in ("The  Red, fox!", "a red fox", "(“Red” «fox»).", "'red fox'", "red。 fox ?"):
        assert words_of(text) == ["red", "fox"]
    for text, other in ("👍👎", "✓✗", ("15%", "15"), ("c++", "c#"), ("-5", "5"), ("1.5", "15"),
                        (".5", "5"), ("กา", "ก"), ("कि", "क"), ("a", ""), "ab", "?!", ("a +", "+")):
        assert words_of(text) != words_of(other) and token_f1(text, other) < 1
    assert token_f1("a red fox", "the red dog.") == 1 / 2 and token_f1("", "a fox") == 0


# ---- pictures ------------------------------------------------------------------------------------

def test_odd_pictures_are_read_and_broken_ones_left_out_up_to_5_percent(own, capsys, monkeypatch):
    odd = own / "pictures"
    phone = Image.fromarray(np.uint8([[255, 0], [255, 0]]))
    phone.getexif()[274] = 6  # its left side is up
    phone.save(odd / "phone.png", exif=phone.getexif())
    Image.fromarray(np.full((9, 9), 65535, dtype=np.uint16)).save(odd / "deep.png")
    Image.new("CMYK", (30, 1), (0, 255, 255, 0)).save(odd / "cmyk.jpg")
    Image.new("RGB", (30_000, 2), "red").save(odd / "strip.png")
    (odd / "half.png").write_bytes((odd / "1.png").read_bytes()[:200])
    shutil.copy(odd / "1.png", odd / "b.avif")
    opened = Image.open  # as if a decoder raised what it likes
    monkeypatch.setattr(Image, "open", lambda path: 1 / 0 if "avif" in str(path) else opened(path))
    names = ["phone.png", "deep.png", "cmyk.jpg", "strip.png", "half.png", "b.avif", "none.png"]
    entries = read_json(own / "train.json") + [entry(n, "what?", "odd", image=n) for n in names]
    write_json(own / "train.json", entries)
    data, printed = make_data(own), capsys.readouterr().out
    assert re.search("3 of 87 .* read: 2 .'half.png', 'b.avif'.; no such .*: 1 .'none", printed)
    phone, white, *reds = (data.array[data.row[name]] for name in names[:4])
    assert phone[:6].min() > 200 and phone[18:].max() < 50 and white.min() == 255
    assert all(red[12, 12, 0] > 180 > 80 > red[12, 12, 1] for red in reds)
    write_json(own / "train.json", entries + [entry("x", "what?", "", image="deep.png")] * 2)
    with pytest.raises(Refused, match="5 of 89 .*an empty answer: 2 .*--allow_bad"):
        make_data(own)
    assert make_data(own, allow_bad=True).count("train") > 50


def test_pictures_are_decoded_once_and_again_when_one_changes(own):
    data, (made,) = make_data(own), (own / "cache").glob("*/pixels")
    before, at = np.array(data.array), made.stat().st_mtime_ns
    assert isinstance(make_data(own).array, np.memmap) and made.stat().st_mtime_ns == at
    made.write_bytes(made.read_bytes()[:-1] + b"?")
    with pytest.raises(Refused, match="delete the folder"):
        make_data(own)
    Image.new("RGB", (50, 50), "blue").save(own / "pictures/0.png")
    assert (make_data(own).array != before).any((1, 2, 3)).sum() == 1


def test_a_redrawn_picture_keeps_its_size_where_a_text_names_a_place():
    picture = np.full((24, 24, 3), 200, dtype=np.uint8)
    picture[9:15, 9:15] = 0
    kept, changed = ([(1 - redrawn(picture, text, random.Random(k))[..., 0] / 200).sum() / 36
                      for k in range(40)] for text in (" red square top left", " red square"))
    assert 0.99 < min(kept) and max(kept) < 1.01 and min(changed) < 0.67 and max(changed) > 1.5


@pytest.mark.parametrize("words", [[(".", 1.0)], [("red", 0.4), ("blue", -0.5)], [("東京", 0.4)]])
def test_a_map_is_drawn_also_of_few_words_and_of_negative_weights(words, tmp_path):
    word_map(tmp_path / "map.png", np.zeros((9, 9, 3), np.uint8), [("title", [words] * 9)], "note")


# ---- splits, texts and scores --------------------------------------------------------------------

def test_a_picture_is_on_one_side_whatever_its_name(own):
    for i in range(40):
        shutil.copy(own / f"pictures/{i}.png", own / f"pictures/copy {i}.png")
    copies = [entry("x", "what?", "a copy", image=f"copy {i}.png") for i in range(40)]
    write_json(own / "copies.json", copies)
    held = make_data(own, val=str(own / "copies.json"))
    assert held.count("train") == held.count("val") + held.count("test") == 40
    write_json(own / "train.json", read_json(own / "train.json") + copies)
    data = make_data(own)
    sides = [{data.mark[e.image] for e in data.of[split]} for split in data.SPLITS]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 80


def test_the_llms_read_different_halves_but_both_know_a_name_that_two_pictures_have(own):
    data = make_data(own)
    source, target = (data.half(dialect) for dialect in ("source", "target"))
    assert sorted(source + target) == sorted(data.of["train"])
    names = [e.turns[0][1] for e in data.of["train"]]
    twice = {name for name in names if names.count(name) > 1}
    assert twice and all(twice <= {e.turns[0][1] for e in half} for half in (source, target))
    raster = data.raster(source[0], random.Random(0))
    assert raster.count("\n") == 3 and {*raster.split()} <= {*words_of(source[0].turns[0][1]), "."}
    _, texts = data.pairs(0, 0, 16)
    assert len(texts) == len({*texts}) == 16 and max(map(len, data.alt_texts(0, 80))) < 128


def test_scores_are_exact_and_the_nearest_picture_finds_a_copy(own):
    test, exam = make_data(own, "test", exam=True), make_data(own, exam=True)
    said = [test.of["test"][0].turns[0][1].upper(), "a hat", "?"]  # two names and a number
    scores = test.score(test.examine(lambda split, items: said, {"test": 2}))
    assert scores == {"exact_match": 1 / 3, "token_f1": 1 / 3, "names_right": 1 / 2}
    exam.reference = make_data(own)  # it has trained on most of them
    majority, chance, nearest = (its["names_right"] for its in exam.guesses({"test": 80}).values())
    assert 0 < majority < 0.25 > chance and nearest > 0.75 and len(test.guesses({"test": 2})) == 2
    exam.reference.known = exam.known[:1]  # guesses know nothing else
    assert exam.guesses({"test": 1})["majority"]["exact_match"] == 1


# ---- the commands --------------------------------------------------------------------------------

def test_the_whole_chain_runs_and_refuses_other_files(own, tmp_path):
    out, pictures, said = tmp_path / "my o", own / "pictures", ""
    entries = read_json(own / "train.json")
    write_json(pictures / "test.json", read_json(own / "test.json")[1:])
    write_json(own / "train.json", [*entries, entry("bad", "what?", "a fox")])
    train = ("train.py", "--preset", "smoke", "--threads", 1, "--out", out, "--images", pictures,
             *"--vit_size 24 --vit_patch 4 --llm_source_V 400 --llm_target_V 400 --vit_steps 4 "
             "--align_steps 4 --instruct_steps 10 --data".split(), own / "train.json")
    evaluate, transfer = ((f"{name}.py", "--out", out) for name in ("evaluate", "transfer"))
    ask = (*evaluate, "--image", pictures / "1.png", "--ask", "how many?", "--map", out / "m.png")
    for command in (train, (*transfer, "--threads", 1), evaluate, ask,
                    (*evaluate, "--data", own / "test.json", "--images", pictures),
                    (*evaluate, "--data", pictures / "test.json", "--images", pictures)):
        done = run_here(*command)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert said.count("1 of 81 entries cannot be used") == 1
    for line in {*re.findall("python (.*PICTURE|.*png)", said.replace("ROW", "blind"))}:
        assert run_here(*shlex.split(line), "--ask", "what is this?").returncode == 0, line
    paths = [out / "transfer.json", out / "evaluate.json", *out.glob("evaluate_test_*.json")]
    results = [*map(read_json, paths), read_json(out / "results.json")["vlm"]]
    assert len({*map(str, results)}) == 5
    for scores in results:
        assert {"majority", "chance", "nearest picture"} <= {*scores}
    assert {"transfer/transferred_langbridge", "blind_instruct"} <= {*results[2]["models"]}
    assert {"train", "test"} == {*results[1]["told"]["langbridge_align"]}
    for change, name in (((pictures / "0.png").unlink, "0.png"),
                         (lambda: write_json(own / "train.json", entries[1:]), "train.json")):
        change()
        open_own.cache_clear()  # as in a new process
        for command in (train, transfer, evaluate):
            assert_refused(run_here(*command), f"{name}' is not as it was when {str(out)!r}")
    (own / "train.json").unlink()  # a question does not need it
    assert "a map without mlp_instruct: [Errno 2] No such" in run_here(*ask).stdout
    assert_refused(run_here(*evaluate), "train.json'")


@pytest.mark.parametrize("folder, n, k, says", [
    ("photos", 80, 0, "there is no folder '"), ("pictures", 30, 0, "add pictures (100 in all"),
    (".", 80, 0, "no such file in --images: 80 ('0.png', '1.png', '2.png', ..); mend them\n"),
    ("pictures", 80, 7919, "the vocabularies share too little; texts with more words in common")])
def test_what_cannot_be_trained_on_is_refused_with_what_to_do(own, folder, n, k, says):
    write_json(own / "train.json", [entry(0, "?", f"{k * i}", image=f"{i}.png") for i in range(n)])
    flags = "--vit_size", 24, "--vit_patch", 4, "--data", own / "train.json"
    assert_refused(run_here("train.py", "--out", own / "o", "--images", own / folder, *flags), says)
    assert not [*own.glob("o/*/*.pt")]


def test_the_script_of_the_page_converts(own, monkeypatch):
    page = (ROOT / "data/README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(own)
    write_json(own / "captions_train2017.json", {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [{"image_id": 7, "caption": text} for text in ("A fox.", "Another.")]})
    exec(re.search("```python\n(.*?)```", page, re.DOTALL)[1], {})
    entries, _ = read_conversations(own / "train.json", 400)
    assert entries == [("7.jpg", [("describe the picture.", "a fox.")])]
