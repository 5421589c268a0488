"""results/glyphs.py: worlds of many names, and every loss in each of them."""
from conftest import run_flags

from data.files import read_json
from results import glyphs


def test_a_world_is_drawn_once_and_every_loss_has_its_scores(tmp_path, monkeypatch):
    quick = dict(preset="smoke", vit_steps=4, llm_source_steps=4, llm_target_steps=4, align_steps=4,
                 llm_source_C=32)
    monkeypatch.setattr(glyphs, "TRAINING", quick)
    monkeypatch.setattr(glyphs, "run", run_flags)
    first, again = (glyphs.measure(tmp_path, 20, threads=1) for _ in range(2))
    entries = read_json(tmp_path / "pictures" / "train.json")
    assert len(entries) == 20 * glyphs.DRAWINGS and first == again
    assert len({entry["conversations"][1]["value"].split()[2] for entry in entries}) == 20
    for row, name in zip(first["rows"], glyphs.LOSSES, strict=True):
        assert row["name"] == name and {"train", "test"} == {*row["langbridge_align"]}
        assert {"exact_match", "val"} <= {*row["aligned_langbridge"]}
