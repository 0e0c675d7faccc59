"""A CoCa of a few thousand weights on coloured squares."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tiny

from mmcl import Budget, EvalSet, Source, Stream, Task
from mmcl.modules.captioner import CaptionerModule

LENGTH = 11


def write_model(folder: Path) -> Path:
    """The tiny CLIP's folder, its configuration made that of a CoCa."""
    tiny.write_model(folder)
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    config = content["model_cfg"]
    pooled = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True}
    config["vision_cfg"] |= pooled
    config["text_cfg"] |= {"embed_cls": True, "output_tokens": True, "pool_type": "last", "width": 12}
    size = config["text_cfg"]
    config["multimodal_cfg"] = {
        **{"context_length": LENGTH, "vocab_size": size["vocab_size"], "width": 12, "heads": 2, "layers": 1},
        **{"attn_pooler_heads": 2},
    }
    config["embed_dim"] = 12
    config["custom_text"] = True
    file.write_text(json.dumps(content))
    return folder


@cache
def model() -> Path:
    """A folder of this process."""
    return write_model(Path(tempfile.mkdtemp(prefix="mmcl-tiny-coca-")) / "coca")


def module(**changes: Any) -> CaptionerModule:
    return CaptionerModule(**{"model": f"local-dir:{model()}", "random_init": True, "lr": 0.01, **changes})


def stream(folder: Path, steps: int = 6) -> Stream:
    """Two tasks; captions written and their perplexity, retrieval of what no task trains."""
    tiny.build(folder)

    def source(name: str) -> Source:
        return Source([str(folder / f"{name}.tar")], name=name, fields={"image": ["png"], "text": ["txt"]})

    tasks = [Task(name, [source(name)], Budget(steps=steps), evaluates=name) for name in ("dots", "stripes")]
    evals = [
        EvalSet("dots", source("dots"), "perplexity", group="task"),
        EvalSet("stripes", source("stripes"), "exact_match", group="task", options={"max_new_tokens": 8}),
        EvalSet("held", source("held"), "retrieval"),
    ]
    return Stream("tiny_captioner", tasks, evals)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Path], Stream]]] = {"captioner": (module, stream)}
