"""A model that sees and answers: a pretrained image tower, an untrained projector, a pretrained language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcl.assets import Asset, folder
from mmcl.errors import RunError

VISION, LANGUAGE = "mobilenetv2", "smollm2-135m"
SIZE, STRIDE = 128, 32
IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's, without the instruction that it puts first, and with a place for the picture."""

EMBEDDINGS = {"model.language_model.embed_tokens.weight", "lm_head.weight"}


def build(unpacked: Mapping[str, Path], out: Path) -> None:
    """Put the two assets together."""
    compose(folder(VISION), folder(LANGUAGE), out)


def compose(vision: Path, language: Path, out: Path, seed: int = 0, size: int = SIZE) -> None:
    """Write a folder for `AutoModelForImageTextToText`: transformers' FastVLM, LLaVA over an image tower of timm.

    The tower's last map (STRIDE x STRIDE pixels a place) goes through a projector of two layers into the language
    model's embeddings. The language model gets one more token, the placeholder for pictures, whose embedding is the
    mean of all others: it is never read, and the output hardly ever prefers it.

    Args:
        vision: folder of timm with the image tower.
        language: folder of transformers with the language model and its tokenizer.
        out: folder that is filled.
        seed: of the projector.
        size: pixels of a picture's sides.

    Raises:
        RunError: the folders are not what the composition expects.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    tokenizer = transformers.AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = TEMPLATE
    speaker: Any = transformers.AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    config = _config(vision, speaker.config, tokenizer.convert_tokens_to_ids(IMAGE), size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    own = network.state_dict()
    seen = {f"model.vision_tower.timm_model.{k}": v for k, v in load_file(vision / "model.safetensors").items()}
    spoken = {k.replace("model.", "model.language_model.", 1): v for k, v in speaker.state_dict().items()}
    taken = {k: v for k, v in {**seen, **spoken}.items() if k in own}  # the tower's classes have no place here
    for name in EMBEDDINGS & taken.keys():
        taken[name] = torch.cat([taken[name], taken[name].mean(dim=0, keepdim=True)])
    lacking = [name for name in own if name not in taken and "multi_modal_projector" not in name]
    misfits = [name for name, value in taken.items() if value.shape != own[name].shape]
    if lacking or misfits:
        raise RunError(f"the parts do not make the model: {[*lacking, *misfits][0]} is missing or of another shape")
    network.load_state_dict({**own, **taken})
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _processor(vision, tokenizer, size).save_pretrained(out)


def _config(vision: Path, language: Any, image_token: int, size: int) -> Any:
    import transformers

    known = json.loads((vision / "config.json").read_text(encoding="utf-8"))
    text = {k: v for k, v in language.to_dict().items() if k not in ("_name_or_path", "_model_name_or_path")}
    tower = {
        "model_type": "timm_wrapper",
        "architecture": known["architecture"],
        "hidden_size": known["num_features"],
        "do_pooling": False,
        "num_labels": 0,
    }
    return transformers.FastVlmConfig(
        vision_config=tower,
        text_config={**text, "vocab_size": image_token + 1},
        image_token_index=image_token,
        image_seq_length=(size // STRIDE) ** 2,
    )


def _processor(vision: Path, tokenizer: Any, size: int) -> Any:
    import transformers

    known = json.loads((vision / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    pictures = transformers.CLIPImageProcessor(
        size={"height": size, "width": size}, do_center_crop=False, image_mean=known["mean"], image_std=known["std"]
    )
    return transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=STRIDE, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )


MOBILENET_SMOLLM2 = Asset(
    name="mobilenet-smollm2",
    title="picture-reading language model of the two: mobilenetv2 and smollm2-135m, untrained projector (transformers)",
    licence="BSD-3-Clause AND Apache-2.0",
    source="composed here of the assets mobilenetv2 and smollm2-135m",
    megabytes=0.0,
    packages=(),
    needs=(VISION, LANGUAGE),
    build=build,
    use="picture questions",
)
