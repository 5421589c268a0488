"""Every setting of train.py: its default, what --help says of it, and the presets.

    s = Settings(seed=1)    s.data is what there is to see and to read
"""
from dataclasses import dataclass, field
from pathlib import Path

from data.corpus import DIALECTS
from data.dataset import ShapeData
from data.files import Refused, read_summed
from data.own import open_own


def setting(default, help, choices=None, flag=None):
    """A field of Settings: its name, or `flag`, becomes a flag, `help` its description."""
    return field(default=default, metadata={"help": help, "choices": choices, "flag": flag})


@dataclass
class Settings:
    out: str = setting("out", "output folder; run the same command again to resume")
    preset: str = setting("laptop", "smoke takes seconds, and learns nothing",
                          ["laptop", "smoke"])
    device: str = setting("auto", "cpu, cuda, mps, or auto")
    precision: str = setting("auto", "bf16 by autocast; auto: bf16 on cuda, else fp32",
                             ["auto", "fp32", "bf16"])
    stages: str = setting("all", "only these stages, separated by commas")
    dry_run: bool = setting(False, "only print parameters and memory of each stage",
                            flag="dry-run")
    compile: bool = setting(False, "compile the models' blocks (torch.compile)")
    threads: int = setting(0, "CPU threads in all; 0: as many as there are cores")
    save_every: int = setting(60, "seconds between checkpoints")
    parts: int = setting(2, "split a batch by length of texts: less padding and memory")
    seed: int = setting(0, "seeds weights, documents and the order of data")
    # what there is to see and to read
    conversations: str = setting("", "conversations about pictures, in LLaVA's format (JSON), "
                                 "instead of our world", flag="data")
    images: str = setting("", "the folder of their pictures")
    val: str = setting("", "conversations that are held out; without them, a fifth of --data is")
    allow_bad: bool = setting(False, "train even if more than 5%% of --data cannot be used",
                              flag="allow-bad")
    corpus: tuple = setting((), "text files that the LLMs read, too")
    pictures: int = setting(12000, "training pictures for align and instruct; with --data: at most")
    test_pictures: int = setting(600, "test pictures, each with a caption and three questions")
    # the language models
    llm_source_tokenizer: str = setting(
        "bpe", "bpe: learned from its texts; or what these need of gpt2, cl100k_base, o200k_base, "
        "or a .gguf file's")
    llm_source_V: int = setting(512, "vocabulary of the source LLM (of another's: at least)")
    llm_source_C: int = setting(128, "width")
    llm_source_layers: int = setting(2, "depth")
    llm_source_steps: int = setting(1300, "pretraining steps")
    llm_target_dialect: str = setting("target", "how its texts are written", list(DIALECTS)[1:])
    llm_target_tokenizer: str = setting("bpe", "as of the source LLM")
    llm_target_V: int = setting(640, "vocabulary of the target LLM")
    llm_target_C: int = setting(160, "width")
    llm_target_layers: int = setting(3, "depth")
    llm_target_steps: int = setting(1200, "pretraining steps")
    llm_H: int = setting(4, "attention heads of both")
    llm_batch: int = setting(10, "documents per step; many small steps beat a few large ones")
    llm_turns: int = setting(10, "at most this many questions and captions per scene")
    llm_captions: float = setting(0.3, "probability that a turn is the description (one at most)")
    llm_rasters: float = setting(0.6, "share of scenes given as a grid of words, not in sentences")
    llm_text_weight: float = setting(0.1, "loss weight of tokens outside answers")
    llm_matrix_lr: float = setting(0.03, "learning rate of the hidden matrices (Muon)")
    llm_lr: float = setting(0.006, "learning rate of everything else (AdamW)")
    # the vision encoder
    vit_size: int = setting(48, "picture side in pixels")
    vit_patch: int = setting(8, "patch side in pixels")
    vit_D: int = setting(128, "width")
    vit_H: int = setting(4, "attention heads")
    vit_layers: int = setting(3, "depth")
    vit_pairs: str = setting("texts", "what belongs to a picture: an alt text, or (without a word) "
                             "another drawing of its scene", ["texts", "drawings"])
    vit_steps: int = setting(1200, "pretraining steps")
    vit_batch: int = setting(32, "pairs per step; half are twins of the others, one attribute off")
    vit_matrix_lr: float = setting(0.01, "learning rate of the hidden matrices (Muon)")
    vit_lr: float = setting(0.001, "learning rate of everything else (AdamW)")
    # stage 1: the adapter on captions
    align_K: int = setting(0, "words of a LangBridge; 0: all that conversations use")
    align_hidden: int = setting(256, "hidden width of a LangBridge")
    align_mlp_hidden: int = setting(0, "hidden width of an MLP; 0: as wide as the LLM")
    align_coefficients: str = setting("softplus", "how outputs become weights: softplus, softmax, "
                                      "relu or linear")
    align_basis: str = setting("words", "what it mixes: words, or (centered) words minus "
                                "their mean")
    align_drawn: float = setting(0.25, "share of patches that say one sampled word in training")
    align_steps: int = setting(400, "steps")
    align_batch: int = setting(32, "pictures per step")
    align_matrix_lr: float = setting(0.02, "learning rate of the adapter's matrices (Muon)")
    align_lr: float = setting(0.006, "learning rate of its biases (AdamW)")
    # stage 2: adapter and LLM on conversations
    instruct_steps: int = setting(550, "steps")
    instruct_batch: int = setting(16, "pictures per step")
    instruct_turns: int = setting(4, "turns of a conversation, at most")
    instruct_captions: float = setting(0.5, "probability that a turn is the caption (one at most)")
    instruct_matrix_lr: float = setting(0.006, "learning rate of the matrices of both (Muon)")
    instruct_lr: float = setting(0.001, "learning rate of everything else (AdamW)")

    def of_llm(self, name):
        """(dialect, V, C, layers, steps) of llm_source or llm_target."""
        dialect = "source" if name == "llm_source" else self.llm_target_dialect
        return dialect, *(getattr(self, f"{name}_{what}") for what in ("V", "C", "layers", "steps"))

    @property
    def data(self):
        """What there is to see and to read."""
        if not self.conversations:
            return ShapeData(self.vit_size, self.pictures, self.test_pictures)
        return open_own(self.conversations, self.images, f"{self.out}/pictures", val=self.val,
                        size=self.vit_size, side=self.vit_size // self.vit_patch,
                        train_pictures=self.pictures, test_pictures=self.test_pictures,
                        allow_bad=self.allow_bad)


OWN = dict(  # with --data: as many words as people use, and things to tell apart
    pictures=10 ** 6, llm_source_V=4096, llm_target_V=5120, vit_steps=5000, llm_source_steps=1800,
    llm_target_steps=1800)
SHORT = dict(  # if the LLMs read captions: texts are short, and many names are in few of them
    llm_batch=24, align_steps=1200, instruct_steps=1200)
PRESETS = {
    "laptop": {},
    "smoke": dict(
        pictures=64, test_pictures=20, llm_source_C=32, llm_source_layers=1, llm_source_steps=30,
        llm_target_C=48, llm_target_layers=2, llm_target_steps=30, llm_batch=4, llm_turns=4,
        vit_D=32, vit_layers=1, vit_steps=20, vit_batch=16, align_hidden=32, align_steps=20,
        align_batch=8, instruct_steps=20, instruct_batch=8),
}


def fill_in(s, values, given):
    """Set what is not given."""
    for name, value in values.items():
        if name not in given:
            setattr(s, name, value)


def load_settings(out):
    """The settings that train.py used for a folder."""
    path = Path(out) / "settings.json"
    try:
        return Settings(**read_summed(path) | {"out": str(out)})
    except TypeError:
        raise Refused(f"{str(path)!r} is of another version of this project; make the folder again")
