"""Speech recognisers in files: exported for transformers alone, and read back."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiny_asr
import torch
from safetensors.torch import load_file, save_file
from tiny_asr import EN, ES, TEXTS, batch_of

from mmcl.errors import ConfigError
from mmcl.modules.asr import ASRModule

# -- export --------------------------------------------------------------------------------------------------------

LOADERS = {
    "whisper": """
        from transformers import WhisperForConditionalGeneration
        model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        logits = model(input_features=batch["input_features"], decoder_input_ids=batch["input_ids"]).logits
        from transformers import AutoFeatureExtractor, AutoTokenizer
        assert AutoTokenizer.from_pretrained(folder).decode([71, 72]) and AutoFeatureExtractor.from_pretrained(folder)
    """,
    "whisper-ctc": """
        import json
        from safetensors.torch import load_file
        from transformers.models.whisper.modeling_whisper import WhisperEncoder
        encoder = WhisperEncoder.from_pretrained(folder).eval()
        head = load_file(folder + "/head.safetensors")
        states = encoder(batch["input_features"]).last_hidden_state
        logits = torch.nn.functional.linear(states, head["weight"], head["bias"])
        assert len(json.load(open(folder + "/alphabet.json"))["symbols"]) == logits.shape[-1]
    """,
    "wav2vec2": """
        from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
        model, processor = Wav2Vec2ForCTC.from_pretrained(folder).eval(), Wav2Vec2Processor.from_pretrained(folder)
        logits = model(batch["audio"][:1]).logits
        print(processor.batch_decode(logits.argmax(-1))[0])
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADERS)
def test_exported_models_load_in_transformers_alone(name: str, tmp_path: Path) -> None:
    family, _, kind = name.partition("-")
    module = tiny_asr.module(family, tmp_path / "model", **({"kind": kind} if kind else {})).eval()
    module.grow(EN)
    module.grow(ES)
    batch = batch_of(module, TEXTS[:1] if name == "wav2vec2" else TEXTS)
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out", "transformers")
    torch.save({"batch": {k: v for k, v in batch.items() if torch.is_tensor(v)}}, tmp_path / "batch.pt")
    head = f"""
        import sys, torch
        folder = {str(tmp_path / "out")!r}
        batch = torch.load({str(tmp_path / "batch.pt")!r})["batch"]
    """
    tail = f"""
        torch.save(logits.detach(), {str(tmp_path / "logits.pt")!r})
        assert "mmcl" not in sys.modules
    """
    script = "".join(map(textwrap.dedent, (head, LOADERS[name], tail)))
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    theirs = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(theirs, module(batch).logits.detach(), rtol=1e-4, atol=1e-5)
    if name == "wav2vec2":
        assert ran.stdout.strip() == (module.generate(batch).texts or [""])[0]
    again = ASRModule(f"local-dir:{tmp_path / 'out'}", kind=kind or "auto").eval()  # type: ignore[arg-type]
    torch.testing.assert_close(again(batch).logits, module(batch).logits)
    assert again.generate(batch).texts == module.generate(batch).texts


def test_a_checkpoint_fills_the_network(tmp_path: Path) -> None:
    for family, more in (("whisper", {}), ("wav2vec2", {})):
        module = tiny_asr.module(family, tmp_path / family, **more).eval()
        (tmp_path / f"{family}-out").mkdir()
        module.export(tmp_path / f"{family}-out", "safetensors")
        file = str(tmp_path / f"{family}-out" / "model.safetensors")
        again = ASRModule(f"local-dir:{tmp_path / family}", checkpoint=file).eval()
        batch = batch_of(module, TEXTS)
        assert torch.equal(again(batch).logits, module(batch).logits)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_published_recogniser_may_lack_the_vector_of_masked_frames(tmp_path: Path, checkpoint: bool) -> None:
    module = tiny_asr.module("wav2vec2").eval()
    module.export(tmp_path, "transformers")
    file = tmp_path / "model.safetensors"
    content = load_file(file)
    del content["wav2vec2.masked_spec_embed"]  # as of facebook/wav2vec2-base-960h
    save_file(content, file, {"format": "pt"})
    settings = {"checkpoint": str(file)} if checkpoint else {}
    again = ASRModule(f"local-dir:{tmp_path}", **settings).eval()
    batch = batch_of(module, TEXTS)
    torch.testing.assert_close(again(batch).logits, module(batch).logits)
    del content["wav2vec2.encoder.layer_norm.bias"]
    save_file(content, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"layer_norm\.bias"):
        ASRModule(f"local-dir:{tmp_path}", **({"checkpoint": str(file)} if checkpoint else {}))
