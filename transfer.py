"""Move an adapter to another LLM, with controls for what else might explain the effect.

    python transfer.py                      after train.py: from the source LLM to the target
    python transfer.py --full-seeds         a train.py run per seed: other LLMs and another ViT
    python transfer.py --rows all           more rows
    python transfer.py --reverse            from the target to the source
    python transfer.py --corpus sentences   LLMs that have never read a raster
    python transfer.py --source A --target B   any LLM folders, absolute or relative to --out
    python transfer.py --target FILE.gguf      to a real LLM, which reads --shots solved examples
    python transfer.py --target FILE.gguf --steps 40    and tune it, too

    row                           how the adapter gets to the target     stage 1, 2 there
    zero_shot_langbridge          its basis is swapped                     no       no
    zero_shot_shuffled            the same, words mixed up                 no       no
    zero_shot_mlp_as_words        its nearest words, mixed                 no       no
    zero_shot_stitched_mlp        through a linear map                     no       no
    words_as_text_langbridge/mlp  its top words, written as text           no       no
    probe_as_text                 no adapter: classified, written as text  no       no
    stage1_native_langbridge/mlp  trained there                            yes      no
    transferred_langbridge        its basis is swapped                     no       yes
    native_langbridge/mlp         trained there                            yes      yes
    blind                         no picture                                        yes

    with --rows all
    zero_shot_blind               no picture                               no       no
    voted_langbridge              a tile's patches say the same mixture    no       no
    top_words_langbridge/mlp      each patch says its top word             no       no
    mlp_as_words, stitched_mlp    as above                                 no       yes
    fresh_langbridge/mlp          random                                   no       yes
    shuffled_basis                words mixed up                           no       yes

A row named _after_instruct (with --rows all) starts from the source's adapter after stage 2 instead
of stage 1. Every row's stage 2 has the same budget, by default two fifths of train.py's: short
enough for the start to matter. A seed decides the adapters and the order of data in both stages.
To a real LLM other rows are made (REAL_ROWS), and it reads solved examples first, as text (Prompted
in model.py). Finished stages are reused. Writes transfer.json and .md into --out, with the mode in
the name.
"""
import math
import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import train
from adapter import (NOTHING, LangBridge, MLPAdapter, Placed, Voted, Written, from_tiles, in_tiles,
                     load_adapter, read_as_words, token)
from data.corpus import GRID
from data.files import (Refused, Stage, locked, read_json, write_json, write_summed, write_text)
from data.gguf import GGUF
from data.loop import size_of
from data.run import (Job, Parser, lanes, number, run_command, say_scores, seconds_in, seed_list,
                      stopwatch)
from data.settings import Settings, load_settings
from data.world import QUESTION_TYPES
from evaluate import exam_facts, held_out, score_vlm
from model import VLM, Prompted, Reader, load_llm
from results.collect import (collect_real, collect_transfer, look_up, print_transfer, row_head,
                             row_line)
from results.report import transfer_table
from train import (align, check, instruct, new_adapter, open_stage, training_features,
                   words_of)

TEMPERATURES = [0.03, 0.06, 0.1, 0.2]  # of an MLP that is read as words; one is chosen on val,
RIDGES = [0.1, 0.3, 1.0, 3.0]  # and so is one of these, of the linear map,
CHOSEN_ON = 150  # by so many pictures
REAL_LR = 0.0003  # of AdamW in stage 2, for a real LLM
EXAMPLES, EXAMPLES_ON = 6, 50  # sets of examples for a real LLM, and the pictures that choose one
PROBED = 1500  # labelled pictures that the probe has seen


class Row(NamedTuple):
    name: str
    kind: str  # mlp, langbridge, probe or blind
    start: str  # native, moved, fresh, shuffled, stitched, as_words, probe, or none
    stage2: bool = False  # on the target
    after: str = "align"  # the source's adapter is taken after this stage
    written: str = ""  # text: top (a patch's top word), relaid (a tile's top two words); or voted
    headline: bool = True
    other_picture: bool = False  # questions are about one picture, and another one is shown

    @property
    def stage1(self):
        """Whether the adapter had stage 1 on the target."""
        return self.start == "native"

    @property
    def from_source(self):
        return self.start in ("moved", "shuffled", "stitched", "as_words")


def more(*row, **fields):
    """A row for --rows all."""
    return Row(*row, **fields, headline=False)


ROWS = [  # the most telling first
    Row("zero_shot_langbridge", "langbridge", "moved"),
    Row("zero_shot_shuffled", "langbridge", "shuffled"),
    Row("zero_shot_mlp_as_words", "mlp", "as_words"),
    Row("zero_shot_stitched_mlp", "mlp", "stitched"),
    Row("words_as_text_langbridge", "langbridge", "moved", written="relaid"),
    Row("words_as_text_mlp", "mlp", "as_words", written="relaid"),
    Row("probe_as_text", "probe", "probe", written="relaid"),
    Row("stage1_native_langbridge", "langbridge", "native"),
    Row("transferred_langbridge", "langbridge", "moved", stage2=True),
    Row("native_langbridge", "langbridge", "native", stage2=True),
    Row("stage1_native_mlp", "mlp", "native"),
    Row("native_mlp", "mlp", "native", stage2=True),
    Row("blind", "blind", "none", stage2=True),
    more("zero_shot_blind", "blind", "none"),
    more("voted_langbridge", "langbridge", "moved", written="voted"),
    more("top_words_langbridge", "langbridge", "moved", written="top"),
    more("top_words_mlp", "mlp", "as_words", written="top"),
    more("mlp_as_words", "mlp", "as_words", stage2=True),
    more("stitched_mlp", "mlp", "stitched", stage2=True),
    more("fresh_langbridge", "langbridge", "fresh", stage2=True),
    more("fresh_mlp", "mlp", "fresh", stage2=True),
    more("shuffled_basis", "langbridge", "shuffled", stage2=True),
    more("transferred_langbridge_after_instruct", "langbridge", "moved", True, "instruct"),
    more("zero_shot_langbridge_after_instruct", "langbridge", "moved", after="instruct"),
    more("zero_shot_shuffled_after_instruct", "langbridge", "shuffled", after="instruct"),
]


REAL_ROWS = [  # to a GGUF file; the first four see no picture, but read the scene in words
    Row("reads_list", "none", "list"),
    Row("reads_rasters", "none", "raster"),
    Row("reads_sentences", "none", "sentences"),
    Row("nothing", "none", "nothing"),
    Row("zero_shot_langbridge", "langbridge", "moved"),
    Row("zero_shot_langbridge_after_instruct", "langbridge", "moved", after="instruct"),
    Row("zero_shot_wrong_picture", "langbridge", "moved", other_picture=True),
    Row("zero_shot_shuffled", "langbridge", "shuffled"),
    Row("zero_shot_mlp_as_words", "mlp", "as_words"),
    Row("zero_shot_stitched_mlp", "mlp", "stitched"),
    Row("words_as_text", "langbridge", "moved", written="relaid"),
    Row("words_as_text_mlp", "mlp", "as_words", written="relaid"),
]
TUNED_ROWS = [  # and with --steps, in this order
    Row("transferred_langbridge", "langbridge", "moved", stage2=True),
    Row("native_mlp", "mlp", "native", stage2=True),
    Row("fresh_mlp", "mlp", "fresh", stage2=True),
    Row("native_langbridge", "langbridge", "native", stage2=True),
]


REAL_SCORES = ("vqa", *QUESTION_TYPES, "caption_f1", "pope_acc")


# ---- how an adapter gets to another LLM ---------------------------------------------------------

def shuffle_words(adapter, seed):
    """Permute which word each output of W stands for; W itself is unchanged. 'Nothing here' keeps
    its place, so that it is still seen where something is."""
    generator = torch.Generator().manual_seed(seed)
    words = [t for t in adapter.tokens if t != NOTHING]
    order = torch.randperm(len(words), generator=generator).tolist()
    shuffled = iter([words[i] for i in order])
    adapter.tokens = [t if t == NOTHING else next(shuffled) for t in adapter.tokens]
    return adapter


def stitch(mlp, v, e, e_target, ridge):
    """An MLP carried to another LLM by a linear map between their embeddings; again an MLP.

        v' = mean of e' + scale (v - mean of e) M
        M = argmin |d M - d'|^2 + ridge tr(d^T d) / C |M|^2,  d = e - mean of e, d' likewise

    e (K, C) and e' = e_target (K, C') are the embeddings of K words; `scale` gives some of the
    MLP's visual tokens, v (n, C), the size of words.
    """
    d, d_target = e - e.mean(0), e_target - e_target.mean(0)
    gram = d.T @ d  # (C, C)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    M = torch.linalg.solve(gram, d.T @ d_target)  # (C, C')
    M *= d_target.norm(dim=1).mean() / ((v - e.mean(0)) @ M).norm(dim=1).mean()
    first, _, last = mlp.net
    stitched = MLPAdapter(first.in_features, M.size(1), first.out_features).to(v.device)
    stitched.net[0].load_state_dict(first.state_dict())
    with torch.no_grad():  # the map becomes a part of the last layer
        stitched.net[2].weight.copy_(M.T @ last.weight)
        stitched.net[2].bias.copy_((last.bias - e.mean(0)) @ M + e_target.mean(0))
    return stitched


def embed(llm, encoding, tokens):
    """The embeddings of tokens that the LLM has: (K, C)"""
    ids = [encoding.encode_single_token(t) for t in tokens]
    return llm.embed(torch.tensor(ids, device=llm.embedding.weight.device))


class Probe(LangBridge):
    """The rival that needs labels and no training loop: ridge regression from a tile's 2 x 2
    patches to the words for what it shows."""

    def fit(self, x, words, ridge=1e-3):
        """x (n, N, D); words: the words of each tile (n, tiles, K), 1 for those that it shows"""
        x, y = self.tiles(x).flatten(0, 1).cpu().double(), words.flatten(0, 1).cpu().double()
        gram = x.T @ x  # (4 D + 1, 4 D + 1)
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        solution = torch.linalg.solve(gram, x.T @ y)  # (4 D + 1, K)
        self.solution = solution.float().to(words.device)
        return self

    def tiles(self, x):
        """x (B, N, D) -> (B, tiles, 4 D + 1), a one at the end"""
        x = in_tiles(x).flatten(2)
        return F.pad(x, (0, 1), value=1.0)

    def weights(self, x):
        """x (B, N, D) -> (B, N, K); those of a tile are the same in its patches"""
        said = self.tiles(x) @ self.solution  # (B, tiles, K)
        said = said.masked_fill(~self.present, -torch.inf)
        return from_tiles(said[:, :, None].expand(-1, -1, 4, -1))  # (B, N, K)


def fit_probe(s):
    """A Probe that has seen labelled training pictures."""
    tokens = [NOTHING, *(token(word) for words in s.data.kinds.values() for word in words)]
    x = training_features(s)[:PROBED].float().to(s.device)  # (n, N, D)
    side = math.isqrt(x.size(1))
    tiles = in_tiles(torch.arange(side * side)[None])[0].tolist()  # the patches of each
    words = torch.zeros(len(x), len(tiles), len(tokens), device=x.device)
    words[..., tokens.index(NOTHING)] = 1.0
    for i in range(len(x)):
        for seen in s.data.objects("train", i, side):
            tile = words[i, tiles.index(seen.patches)]
            tile.zero_()
            tile[[tokens.index(token(word)) for word in seen.words.values()]] = 1.0
    return Probe(x.size(2), tokens).to(s.device).fit(x, words)


def ways(s, row, move, llm, encoding):
    """A row's adapter as it may arrive at the target LLM, {constant: adapter}: several, where a
    constant is open."""
    if row.start == "fresh":
        return {None: new_adapter(s, row.kind, llm, encoding).set_basis(llm, encoding)}
    if row.start == "probe":
        return {None: fit_probe(s).set_basis(llm, encoding)}
    adapter = load_adapter(move.start_of(row).folder).to(s.device)
    if row.start == "shuffled":
        shuffle_words(adapter, s.seed)
    if row.start in ("native", "moved", "shuffled"):
        return {None: adapter.set_basis(llm, encoding)}
    source, its_encoding = load_llm(Path(s.out) / move.source)
    source.to(s.device)
    tokens = words_of(s, its_encoding)
    if row.start == "as_words":
        read = {temperature: read_as_words(adapter, source, its_encoding, tokens, temperature)
                for temperature in TEMPERATURES}
        return {temperature: each.set_basis(llm, encoding) for temperature, each in read.items()}
    known = [t for t in tokens if t in encoding.token_byte_values()]  # stitched
    with torch.no_grad():
        v = adapter(training_features(s)[:500].float().to(s.device)).flatten(0, 1)  # (n, C)
        e, e_target = embed(source, its_encoding, known), embed(llm, encoding, known)
    return {ridge: stitch(adapter, v, e, e_target, ridge) for ridge in RIDGES}


def bring(s, row, move, llm, encoding, see=VLM, pictures=CHOSEN_ON):
    """A row's adapter as it arrives at the target LLM, before any stage 2 (None for blind), and the
    constant that did best on val, if one was open. see(adapter, llm, encoding) is the VLM that is
    tried, on so many pictures."""
    if row.start == "none":
        return None, None
    adapters = ways(s, row, move, llm, encoding)
    if row.start == "stitched" and see is not VLM:  # it must say where there is something, too
        sees = ways(s, row._replace(start="as_words"), move, llm, encoding)[TEMPERATURES[0]]
        adapters = {ridge: Placed(adapter, sees) for ridge, adapter in adapters.items()}
    for constant, adapter in adapters.items():
        if row.written:
            adapters[constant] = (Voted(adapter) if row.written == "voted" else
                                  Written(adapter, relaid=row.written == "relaid"))
    exam = {"val": held_out(s.out, s.device, ["val"], s.data)["val"][:pictures]}

    def quality(constant):
        vlm = see(adapters[constant], llm, encoding)
        scores = score_vlm(vlm, exam, s.data)["val"]
        return sum(scores[name] for name in s.data.SCORES[:2])

    best = max(adapters, key=quality) if len(adapters) > 1 else None
    return adapters[best], best


def make_row(s, stage, row, move):
    """Make a row: bring the adapter, run stage 2 if the row has it, score."""
    llm, encoding = load_llm(Path(s.out) / move.target)
    llm.to(s.device)
    adapter, constant = bring(s, row, move, llm, encoding)
    if row.name == "zero_shot_langbridge":
        say_missing(stage, adapter, move)
    if row.stage2:
        return instruct(s, stage, row.kind, move.target, adapter)
    facts = exam_facts(VLM(adapter, llm, encoding), held_out(s.out, s.device), s.data)
    stage.finish(base=move.target, seconds=0.0, chosen=constant, **facts)


# ---- to a real LLM ------------------------------------------------------------------------------

def choose_examples(s, stage, move):
    """Which solved examples an LLM reads before a scene: those after which it answers best about
    scenes of val, in words."""
    llm, encoding = load_llm(move.target)
    llm.to(s.device)
    few = min(EXAMPLES_ON, s.data.count("val"))
    texts = {"val": [s.data.tell("val", i, "list") for i in range(few)]}
    tried = {}
    for seed in range(EXAMPLES):
        reader = Reader(llm, encoding, s.data.examples(move.shots, seed, "list"))
        tried[seed] = score_vlm(reader, texts, s.data)
    best = max(tried, key=lambda seed: tried[seed]["val"]["vqa"])
    stage.finish(seconds=0.0, chosen=best, scores=tried[best],
                 tried={seed: scores["val"]["vqa"] for seed, scores in tried.items()},
                 params=size_of(llm), vocab=llm.config.V)


def make_real_row(s, stage, row, move):
    """Make a row of an LLM that reads examples first; no weight of it is changed, unless the row
    has stage 2: then there are no examples, and a picture is a raster, as everywhere."""
    llm, encoding = load_llm(move.target)
    llm.to(s.device)
    if row.stage2:
        adapter, _ = bring(s, row, move, llm, encoding)
        return instruct(s, stage, row.kind, move.target, adapter, points=5)
    how = row.start if row.start in ("raster", "sentences") else "list"
    examples = s.data.examples(move.shots, move.examples.config()["chosen"], how)
    if row.kind == "none":
        vlm, about = Reader(llm, encoding, examples), {}
        exam = {"test": [s.data.tell("test", i, row.start) for i in range(s.data.count("test"))]}
    else:
        see = partial(Prompted, examples=examples)
        adapter, constant = bring(s, row, move, llm, encoding, see, EXAMPLES_ON)
        vlm, about = see(adapter, llm, encoding), {"chosen": constant}
        exam = held_out(s.out, s.device, ["test"], s.data)
    if row.name == "zero_shot_langbridge":
        about["words"] = say_missing(stage, adapter, move)
    if row.other_picture:
        exam["test"] = exam["test"].roll(len(exam["test"]) // 2, 0)
    facts = exam_facts(vlm, exam, s.data)
    stage.finish(base=move.target, seconds=0.0, **about, **facts)


# ---- adapters and rows as stages -----------------------------------------------------------------

def say_missing(stage, adapter, move):
    """Say which of an adapter's words the target lacks; returns how many it [has, of]."""
    K, lost = len(adapter.tokens), b", ".join(adapter.missing[:10]).decode("latin-1") or "none"
    print(f"{stage.name}: of the adapter's {K} words {label(move.target)} lacks "
          f"{len(adapter.missing)} ({lost})", flush=True)
    return [K - len(adapter.missing), K]


@dataclass
class Move:
    """From one LLM to another, with one seed: the stages of its adapters and rows.

    Adapters trained on an LLM are in transfer/<LLM>/seed<k>/; rows that came from another LLM are
    in from_<that LLM>/ inside it. train.py's own stages are reused.
    """
    s: Settings  # of the adapters: its seed, and train.py's budgets
    source: str
    target: str
    own: bool  # whether the seed is train.py's, so that its adapters can be used
    steps: int = 0  # of stage 2 in every row; 0: two fifths of train.py's
    rate: float = 1.0  # times the learning rates of stage 2
    root: str = "transfer"
    shots: int = 0  # solved examples that a real LLM reads before a scene
    pictures: int = 0  # test pictures that it is asked about
    reads: str = ""  # the --out folder of what does not depend on an adapter
    tunes: bool = True  # whether it makes rows with stage 2

    def __post_init__(self):
        self.real = is_file(self.target)
        self.row_s = replace(self.s, instruct_steps=self.steps or self.s.instruct_steps * 2 // 5,
                             instruct_lr=self.rate * self.s.instruct_lr,
                             instruct_matrix_lr=self.rate * self.s.instruct_matrix_lr)
        if self.real:  # a step takes seconds
            self.row_s = replace(
                self.row_s, test_pictures=self.pictures, instruct_lr=self.rate * REAL_LR,
                align_steps=self.row_s.instruct_steps * 5 // 2, align_batch=self.s.instruct_batch)

    def makes(self, row):
        return self.tunes or not row.stage2

    def s_of(self, llm):
        """The settings of adapters that are trained on this LLM."""
        return self.row_s if self.real and llm == self.target else self.s

    def folder_of(self, llm):
        return f"{self.root}/{label(llm)}/seed{self.s.seed}"

    def by_train(self, llm):
        """Whether train.py has trained this LLM's adapters."""
        return self.own and llm == "llm_source"

    def adapter(self, llm, kind, phase):
        """The stage that holds the adapter trained on this LLM."""
        name = f"{kind}_{phase}"
        if self.real and llm == self.target:
            name = f"steps{self.steps}/{name}"  # its stage 1 is as long as stage 2 allows
        return open_stage(self.s_of(llm),
                          name if self.by_train(llm) else f"{self.folder_of(llm)}/{name}")

    @property
    def examples(self):
        """The stage that holds the choice of examples for a real LLM."""
        return self.reading(f"examples{self.shots}")

    def reading(self, name):
        """A stage of a real LLM that does not depend on an adapter."""
        settings = {"shots": self.shots, "test_pictures": self.pictures}
        return Stage(self.reads, f"{self.root}/{label(self.target)}/{name}", settings)

    def llm_of(self, row):
        """The LLM that a row's adapter was trained with."""
        return self.source if row.from_source else self.target

    def start_of(self, row):
        """The stage that holds the adapter that a row starts from."""
        return self.adapter(self.llm_of(row), row.kind, row.after)

    def stage_of(self, row):
        """The stage that holds a row's scores."""
        if row.kind == "none":
            return self.reading(row.name)
        if row.stage1 and not row.stage2:
            return self.start_of(row)
        name, s = f"from_{label(self.source)}/{row.name}", self.row_s
        if row.stage1:
            name = f"native_{row.kind}_instruct"
        if row.stage2 and self.steps:  # another budget than the usual one
            name = f"steps{self.steps}/rate{self.rate:g}/{name}"
        if not row.stage2:  # whatever the budget
            s = replace(self, steps=0, rate=1.0).row_s
        stage = open_stage(s, f"{self.folder_of(self.target)}/{name}")
        if self.real and not row.stage2:
            stage.settings["shots"] = self.shots
        return stage

    def jobs(self, rows):
        """The rows' jobs, each after those of the adapter that it starts from."""
        jobs = {}  # by folder: several rows may start from one adapter
        for row in filter(self.makes, rows):
            after = []
            if row.from_source or row.stage1:
                after = [self.start_of(row)]
                for job in self.adapter_jobs(row):
                    jobs.setdefault(job.stage.folder, job)
            if self.real:
                jobs.setdefault(self.examples.folder, Job(choose_examples, self.row_s,
                                                          self.examples, {"move": self}))
                after = [*after, self.examples]
            if row.stage2 or not row.stage1:
                stage, about = self.stage_of(row), {"row": row, "move": self}
                make = make_real_row if self.real else make_row
                jobs[stage.folder] = Job(make, self.row_s, stage, about, after)
        return list(jobs.values())

    def adapter_jobs(self, row):
        """The jobs that train the adapter that a row starts from; none if train.py has."""
        llm, start = self.llm_of(row), self.start_of(row)
        if self.by_train(llm):
            read_json(start.folder / "config.json")  # or Refused, before anything is made
            return []
        about, aligned = {"kind": row.kind, "llm_name": llm}, self.adapter(llm, row.kind, "align")
        jobs = [Job(align, self.s_of(llm), aligned, about)]
        if row.after == "instruct":
            jobs.append(Job(instruct, self.s_of(llm), start, about, [aligned]))
        return jobs


def run_moves(s, moves, rows, say=say_scores):
    """Make all adapters and rows, one move after the other."""
    jobs = {}  # by folder: several moves may need one adapter
    for move in moves:
        for job in move.jobs(rows):
            jobs.setdefault(job.stage.folder, job)
    with ExitStack() as locks:
        for move in moves:
            locks.enter_context(locked(move.s.out))
        run = locks.enter_context(lanes(s, max(1, len(jobs)), say))
        run(list(jobs.values()))


def is_file(llm):
    """Whether an LLM is a real one, in a GGUF file."""
    return llm.endswith(".gguf") or Path(llm).is_file()


def label(llm):
    """A folder name for an LLM; for a path, its last two parts: out-seed1-llm_source; for a file,
    its name."""
    if is_file(llm):
        return Path(llm).stem
    if "/" in llm or os.sep in llm:
        return "-".join(Path(llm).resolve().parts[-2:])
    return llm


def copy_stages(s, out, *stages):
    """Copy finished stages into another folder, and return the settings of that folder."""
    for stage in stages:
        if not (Path(out) / stage / "config.json").exists():
            shutil.copytree(Path(s.out) / stage, Path(out) / stage, dirs_exist_ok=True)
    s = replace(s, out=out)
    write_summed(Path(out) / "settings.json", asdict(s))
    return s


# ---- python transfer.py -------------------------------------------------------------------------

def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", default="out", help="the folder that train.py wrote (default: out)")
    add("--seeds", type=seed_list, help="seeds of the adapters and of both stages (default: 0; "
        "0,1,2 with --full-seeds)")
    add("--reverse", action="store_true", help="from the target LLM to the source LLM")
    add("--source", default="llm_source", help="LLM folder that the adapter comes from")
    add("--target", default="llm_target", help="LLM folder, or GGUF file, that it is moved to")
    add("--shots", type=number(1), default=16,
        help="solved examples, as text, that a real LLM (GGUF file) reads before a scene "
        "(default: 16)")
    add("--pictures", type=number(4), default=200,
        help="test pictures that a real LLM is asked about (default: 200)")
    add("--full-seeds", action="store_true", help="each seed has LLMs and a ViT of its own: "
        "train.py into OUT-seed1 and so on")
    add("--corpus", choices=["both", "sentences"], default="both", help="sentences: LLMs that "
        "never read a raster, in OUT-sentences with the ViT of --out")
    add("--rows", choices=["headline", "all"], default="headline",
        help="all: more ways to move, fresh adapters, adapters after instruct, too")
    add("--steps", type=number(0), default=0,
        help="steps of stage 2 on the target, in every row (default: two fifths of train.py's; for "
        "a GGUF file, none, and with the first seed only)")
    add("--threads", type=number(0), default=0,
        help="CPU threads in all; 0: as many as there are cores")
    add("--device", help="cpu, cuda or mps (default: what train.py used)")
    args = parser.parse_args(argv)
    args.real = is_file(args.target)
    if args.real:
        args.target = str(Path(args.target).resolve())
        GGUF(args.target)  # refused now, not after training
        if args.reverse or args.corpus == "sentences":
            raise Refused("to a GGUF file, adapters are moved from the source LLM as it is: "
                          "--reverse and --corpus do not go with it")
    if args.full_seeds and args.corpus == "sentences":
        raise Refused("--full-seeds does not go with --corpus sentences")
    own_llms = args.full_seeds or args.corpus == "sentences"
    named = {args.source} if args.real else {args.source, args.target}
    if own_llms and not named <= {"llm_source", "llm_target"}:
        raise Refused("--source and --target name one pair of LLMs, --full-seeds and --corpus make "
                      "their own: use one or the other")
    args.seeds = args.seeds or ([0, 1, 2] if args.full_seeds else [0])
    if args.reverse:
        args.source, args.target = args.target, args.source
    return args


def name_of(args):
    """The name of the files that a run writes: transfer, and its mode."""
    name = "transfer"
    if args.reverse:
        name += "_reverse"
    if args.full_seeds:
        name += "_full-seeds"
    if args.corpus == "sentences":
        name += "_sentences"
    if args.real:
        name = f"transfer_{label(args.target)}"
    elif {args.source, args.target} != {"llm_source", "llm_target"}:
        name += f"_{label(args.source)}_to_{label(args.target)}"
    return name


def prepare_seed(seed, args, s):
    """The settings of this seed's folder; LLMs (or a whole run) that are missing are made first."""
    if args.corpus == "sentences":
        s = copy_stages(replace(s, llm_rasters=0.0), f"{s.out}-sentences", "vit")
        with lanes(s, most=2) as run:
            run([Job(train.pretrain_llm, s, open_stage(s, "llm_target")),
                 Job(train.pretrain_llm, s, open_stage(s, "llm_source"))])
    elif args.full_seeds and seed != s.seed:
        s = replace(s, seed=seed, out=f"{s.out}-seed{seed}")
        if not (Path(s.out) / "results.json").exists():
            train.main(s)
    llms = [args.source] if args.real else [args.source, args.target]
    for llm in llms:
        read_json(Path(s.out) / llm / "config.json")  # fails now, not after training
    return s


def rows_of(args, s):
    """The rows that were asked for, without those that these settings do not allow."""
    if args.real:
        rows = REAL_ROWS + (TUNED_ROWS if args.steps else [])
    else:
        rows = [row for row in ROWS if args.rows == "all" or row.headline]
    return [row for row in rows if can_be_made(row, s)]


def can_be_made(row, s):
    """Whether these settings allow a row. Text is laid out for 6 x 6 patches, and only an MLP as
    wide as its LLM is read as words."""
    if row.written in ("relaid", "voted") and s.vit_size != GRID * s.vit_patch:
        return False
    if row.start == "probe" and not s.data.kinds:  # it needs labels
        return False
    return row.start != "as_words" or s.align_mlp_hidden == 0


def main():
    args = parse(sys.argv[1:])
    s = replace(load_settings(args.out), stages="all", threads=args.threads or os.cpu_count())
    s.device = args.device or s.device
    check(s)
    if args.real and not s.data.kinds:
        raise Refused("--target FILE.gguf needs a run on our world: the examples that a real LLM "
                      "reads are about its scenes")
    torch.set_num_threads(s.threads)
    with locked(args.out):
        move_all(args, s)


def move_all(args, s):
    """What was asked for, from the LLMs that are missing to the tables."""
    moves = []
    for seed in args.seeds:
        its = prepare_seed(seed, args, s)
        own = seed == its.seed and args.corpus == "both"
        moves.append(Move(replace(its, seed=seed), args.source, args.target, own, args.steps,
                          shots=args.shots, pictures=args.pictures, reads=args.out,
                          tunes=not args.real or not moves))  # a real LLM is tuned with one seed
    rows, names = rows_of(args, s), REAL_SCORES if args.real else s.data.SCORES
    print(f"transfer: {args.source} to {label(args.target)}, seeds {args.seeds}, {len(rows)} rows, "
          f"stage 2 of {moves[0].row_s.instruct_steps} steps x {s.instruct_batch} pictures, device "
          f"{s.device}, {s.threads} threads, settings of {args.out}/settings.json", flush=True)
    out, name = Path(args.out), name_of(args)
    clock = out / "transfer" / f"seconds{name.removeprefix('transfer')}.json"
    clock.parent.mkdir(exist_ok=True)
    pictures = {split: s.data.count(split) for split in s.data.EXAM if split != "val"}
    if args.real:
        pictures = {"test": moves[0].row_s.data.count("test")}
    guesses = {"chance": s.data.chance(pictures), "majority": s.data.majority(pictures)}
    made = {row: [move for move in moves if move.makes(row)] for row in rows}
    by_folder = {move.stage_of(row).folder: row for row in rows for move in made[row]}

    def show(name, stage1, stage2, scores):
        print(row_line(name, stage1, stage2, [look_up(scores, score) for score in names]),
              flush=True)

    def say(job):
        row = by_folder.get(job.stage.folder)
        if row is None:
            return say_scores(job)  # an adapter that a row needs
        seed = f", seed {job.s.seed}" if len(moves) > 1 else ""
        show(row.name + seed, row.stage1, row.stage2, job.stage.config()["scores"])

    print(f"\n{row_head(names)}", flush=True)
    for guess, scores in guesses.items():
        show(guess, "", "", scores)
    if any(move.stage_of(row).config() is None for row in rows for move in made[row]):
        with stopwatch(clock):
            run_moves(s, moves, rows, say)
    configs = {row.name: [move.stage_of(row).config() for move in made[row]] for row in rows}
    starts = {row.name: [move.start_of(row).config() for move in made[row]]
              for row in rows if row.stage1 or row.from_source}
    result = collect_transfer(rows, names, configs, starts, seeds=args.seeds,
                              source=label(args.source), target=label(args.target), **guesses)
    result["seconds"] = seconds_in(clock)
    if args.real:
        result |= collect_real(moves[0].examples.config(), configs)
    write_json(out / f"{name}.json", result)
    write_text(out / f"{name}.md", transfer_table(result))
    print_transfer(result)
    if args.real:
        print(f"\n{seconds_in(clock) / 60:.1f} minutes. {out}/{name}.json and .md. Try next:\n"
              f"  python evaluate.py --out {out} --image results/picture.png --llm {args.target}")
        return
    (row,) = [row for row in ROWS if row.name == "transferred_langbridge"]
    transferred = moves[0].stage_of(row).name
    print(f"\n{seconds_in(clock) / 60:.1f} minutes. {out}/{name}.json and .md. Try next:\n"
          f"  python evaluate.py --out {moves[0].s.out} --model {transferred} "
          "--image results/picture.png\n"
          f"  python transfer.py --out {out} {'--rows all' if args.reverse else '--reverse'}")


if __name__ == "__main__":
    run_command(main)
