"""Models of a few thousand weights that read pictures and answer, and questions about coloured squares."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import tiny_text
import transformers

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.datamodules.write import write_shard
from mmcl.modules.mllm import MLLMModule

IMAGE = "<image>"
MARKS = [IMAGE, "<fake_token_around_image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))]
CHAT = (
    "{% for m in messages %}<start>{{ m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<end>\n{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def tokenizer() -> Any:
    """Bytes, the text models' special tokens, and the marks of pictures."""
    made = tiny_text.tokenizer()
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def config(kind: str, known: Any) -> Any:
    """Two blocks of width 16 on either side."""
    text: dict[str, Any] = {
        **{"vocab_size": len(known), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256},
        **{"bos_token_id": known.bos_token_id, "eos_token_id": known.eos_token_id, "pad_token_id": known.pad_token_id},
    }
    image = known.convert_tokens_to_ids(IMAGE)
    if kind == "llava":
        vision = {**VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
        text["model_type"] = "llama"
        return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    if kind == "qwen2_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
        vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8, "hidden_size": 16}
        return transformers.Qwen2VLConfig(
            vision_config=vision, text_config={**text, "rope_parameters": rope}, image_token_id=image
        )
    vision = {**VISION, "image_size": 16, "patch_size": 4}
    text["model_type"] = "llama"
    make = transformers.SmolVLMConfig if kind == "smolvlm" else transformers.Idefics3Config
    return make(vision_config=vision, text_config=text, image_token_id=image, scale_factor=2)


def processor(kind: str) -> Any:
    """The image processor that lies beside the model; None where the standard one is built."""
    if kind == "llava":
        return None
    if kind == "qwen2_vl":
        size = {"shortest_edge": 256, "longest_edge": 1024}
        return transformers.Qwen2VLImageProcessor(size=size, patch_size=8, merge_size=2)
    return transformers.Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=kind == "idefics3"
    )


def write_model(folder: Path, kind: str) -> Path:
    """A folder with configuration, tokenizer and, mostly, an image processor; no weights."""
    known = tokenizer()
    if kind != "llava":
        known.chat_template = CHAT
    made = config(kind, known)
    made.save_pretrained(folder)
    known.save_pretrained(folder)
    if (own := processor(kind)) is not None:
        own.save_pretrained(folder)
    return folder


@cache
def model(kind: str) -> Path:
    """A folder of this process with a tiny model."""
    return write_model(Path(tempfile.mkdtemp(prefix="mmcl-tiny-mllm-")) / kind, kind)


def module(kind: str, **changes: Any) -> MLLMModule:
    given = {"model": str(model(kind)), "random_init": True, "lr": 1e-2, "max_length": 200, "trainable": PARTS}
    return MLLMModule(**{**given, **changes})


PARTS = ("vision", "projector", "language")


def questions(style: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Squares and what is asked about them: the colour, or the style."""
    for sample in tiny.pictures(style, count, seed):
        colour = list(tiny.COLOURS)[sample["cls"]]
        asked = (
            ("Which colour?", colour) if style == "dots" else ("Dots or stripes, and which colour?", f"It is {colour}.")
        )
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), asked, strict=True)]
        told = {"conversations": turns, "choices": [asked[1].replace(colour, name) for name in tiny.COLOURS]}
        yield {"__key__": sample["__key__"], "png": sample["png"], "json": told, "cls": sample["cls"]}


def stream(folder: Path, steps: int = 6) -> Stream:
    """Two tasks; the held-out columns are questions of the first kind about other squares, and plain text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, style, count in (("dots", "dots", 24), ("stripes", "stripes", 20), ("held", "dots", 9)):
        write_shard(folder / f"{name}.tar", questions(style, count, len(name)))
    write_shard(folder / "plain.tar", tiny_text.documents("plain", 7))

    def source(name: str, **more: Any) -> Source:
        fields = {"image": ["png"], "conversation": ["json"], **more}
        return Source([str(folder / f"{name}.tar")], name=name, fields=fields)

    tasks = [Task(name, [source(name)], Budget(steps=steps), evaluates=name) for name in ("dots", "stripes")]
    match = {"max_new_tokens": 4}
    evals = [
        EvalSet("dots", source("dots", labels=["cls"]), "choice", class_names=list(tiny.COLOURS), group="task"),
        EvalSet("stripes", source("stripes"), "exact_match", group="task", options=match, subset=5),
        EvalSet("held", source("held"), "choice"),
        EvalSet("plain", Source([str(folder / "plain.tar")]), "perplexity"),
    ]
    return Stream("tiny_mllm", tasks, evals)


def _case(kind: str) -> tuple[Callable[[], Any], Callable[[Path], Stream]]:
    return (lambda: module(kind)), stream


CASES: dict[str, tuple[Callable[[], Any], Callable[[Path], Stream]]] = {
    "llava": _case("llava"),
    "qwen2_vl": _case("qwen2_vl"),
    "smolvlm": _case("smolvlm"),
    "idefics3": _case("idefics3"),
}
"""Name -> (a module, its stream with the shards in a folder)."""
