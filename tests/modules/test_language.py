"""Language models: losses against transformers' own, packing by bytes, tokenizers of other models, GGUF, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from torch import Tensor
from transformers import RobertaConfig

from mmcl import weights
from mmcl.errors import ConfigError
from mmcl.modules.masked_lm import MaskedLMModule
from mmcl.modules.objectives import IGNORED
from mmcl.modules.text_packing import TextPacking

TEXTS = ["the café", "中 and the sun", "  two\tspaces ", "😀", "NE <end> NE"]


def block_of(module: Any, text: str) -> dict[str, Any]:
    ((ids, sizes),) = module.packing.encode([text])
    return {"tokens": np.array(ids), "bytes": np.array(sizes)}


def batch_of(module: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    torch.manual_seed(0)
    batch: dict[str, Any] = module.collate([{"__key__": "k", **module.transform(row, True)} for row in rows])
    return batch


def random_batch(module: Any, lengths: tuple[int, ...] = (17, 9, 17)) -> dict[str, Any]:
    """Blocks of random tokens; one is the short last one of a source."""
    random = np.random.default_rng(0)
    return batch_of(module, [{"tokens": random.integers(4, 200, n), "bytes": np.ones(n, np.int64)} for n in lengths])


# -- losses ----------------------------------------------------------------------------------------------------------


def test_the_causal_loss_is_that_of_transformers() -> None:
    module = tiny_text.causal()
    module.network.double()
    batch = random_batch(module)
    (loss,) = module.loss(module(batch), batch).values()
    tokens = torch.cat([batch["input_ids"], batch["targets"][:, -1:].clamp(min=0)], dim=1)
    labels = torch.cat([batch["input_ids"][:, :1], batch["targets"]], dim=1)
    assert (labels == IGNORED).sum() == 8  # what the short block lacks
    theirs = module.network(input_ids=tokens, labels=labels).loss
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_the_masked_loss_is_that_of_transformers() -> None:
    module = tiny_text.masked().eval()
    module.network.double()
    batch = random_batch(module)
    (loss,) = module.loss(module(batch), batch).values()
    theirs = module.network(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["targets"]
    ).loss
    torch.testing.assert_close(loss, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_padding_and_padded_rows_take_no_part() -> None:
    module = tiny_text.masked().eval()
    batch = random_batch(module)
    before = module(batch)
    batch["input_ids"][1, batch["attention_mask"][1] == 0] = 77
    after = module({**batch, "valid": torch.tensor([True, True, False])})
    assert torch.equal(before.logits[1][before.valid[1]], after.logits[1][before.valid[1]])
    assert not after.valid[2].any() and before.valid[2].any()
    assert torch.equal(before.valid[:2], after.valid[:2])


# -- blocks ----------------------------------------------------------------------------------------------------------


def test_bytes_of_tokens_are_those_of_the_documents() -> None:
    packing = tiny_text.causal().packing
    for text, (ids, sizes) in zip(TEXTS, packing.encode(TEXTS), strict=True):
        assert len(ids) == len(sizes) and ids[-1] == packing.end
        assert sum(sizes) == len(text.encode())
        assert packing.end not in ids[:-1], "what looks like an end token in a document is text"


def test_bytes_that_the_tokenizer_drops_are_counted() -> None:
    from tokenizers import normalizers

    known = tiny_text.tokenizer()
    known.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    packing = TextPacking(known, 8, 1)
    ((ids, sizes),) = packing.encode(["  É A \n"])
    assert sum(sizes) == 8 and sizes[-1] == 2 and len(ids) == 5  # é takes two tokens
    assert packing.fingerprint != TextPacking(tiny_text.tokenizer(), 8, 1).fingerprint
    assert packing.fingerprint != TextPacking(known, 8, 0).fingerprint


def test_a_causal_row_predicts_the_next_token() -> None:
    module = tiny_text.causal(block=8)
    sample = block_of(module, "the sun")  # the, space, s, u, n, <end>
    row = module.transform(sample, True)
    assert row["input_ids"].tolist() == [*sample["tokens"][:-1], *[module.padding] * 3]
    assert row["targets"].tolist() == [*sample["tokens"][1:], *[IGNORED] * 3]
    assert int(row["target_bytes"].sum()) == len("the sun") - len("the")


def test_masks() -> None:
    module = tiny_text.masked(block=60, share=0.3)
    row = {"tokens": np.array([10, 20, module.packing.end] * 20)[:59], "bytes": np.ones(59, np.int64)}
    torch.manual_seed(3)
    drawn = [module.transform(row, True) for _ in range(60)]
    clean = torch.tensor([module.start, *row["tokens"][:58], module.packing.end])
    masked = random = kept = 0
    for found in drawn:
        chosen = found["targets"] != IGNORED
        assert int(chosen.sum()) == round(0.3 * 39) and torch.equal(found["targets"][chosen], clean[chosen])
        assert torch.equal(found["input_ids"][~chosen], clean[~chosen])
        assert not (chosen & torch.isin(clean, module.fixed)).any(), "special tokens are not predicted"
        assert int(found["target_bytes"].sum()) == int(chosen.sum())
        masked += int((found["input_ids"] == module.mask).sum())
        kept += int((found["input_ids"] == clean)[chosen].sum())
    random = 60 * 12 - masked - kept
    assert 0.74 < masked / 720 < 0.86 and 0.06 < kept / 720 < 0.14 and 0.06 < random / 720 < 0.14
    torch.manual_seed(3)
    assert torch.equal(module.transform(row, False)["input_ids"], drawn[0]["input_ids"])


def test_random_tokens_have_an_embedding(tmp_path: Path) -> None:
    folder = tiny_text.write_model(tmp_path, "masked")
    known = tiny_text.tokenizer()
    rows = len(known)
    known.add_special_tokens({"additional_special_tokens": [f"<extra-{i}>" for i in range(200)]})
    known.save_pretrained(folder)
    module = MaskedLMModule(str(folder), random_init=True, block=60, share=0.9)
    row = {"tokens": np.arange(10, 68), "bytes": np.ones(58, np.int64)}
    torch.manual_seed(0)
    drawn = torch.stack([module.transform(row, True)["input_ids"] for _ in range(30)])
    assert len(module.tokenizer) == rows + 200 and int(drawn.max()) < rows


# -- generating ------------------------------------------------------------------------------------------------------


def test_generated_texts_do_not_depend_on_the_other_prompts() -> None:
    torch.manual_seed(0)
    module = tiny_text.causal().eval()
    prompts = ["the sun and the", "rain", "NE"]
    together = module.generate({"text": prompts}, max_new_tokens=6).texts
    alone = [module.generate({"text": [p]}, max_new_tokens=6).texts[0] for p in prompts]
    assert together == alone and len(together) == 3
    ids = module.tokenize(["rain"])
    assert module.generate({"input_ids": ids}, max_new_tokens=6).texts == [alone[1]]
    with pytest.raises(ConfigError, match="MaskedLMModule does not generate"):
        tiny_text.masked().generate({"text": ["rain"]})


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        module = tiny_text.causal(gradient_checkpointing=checkpointing).train()
        batch = random_batch(module)
        (loss,) = module.loss(module(batch), batch).values()
        loss.backward()
        found.append({n: p.grad for n, p in module.network.named_parameters()})
    assert module.network.is_activation_checkpointing
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


# -- weights, adapters, export ---------------------------------------------------------------------------------------


class Constant(torch.nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    module = tiny_text.causal()
    network = module.network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    before = {name: value.clone() for name, value in weights.read(network).items()}
    teacher = module.build_network()
    weights.resize(teacher, before)
    weights.write(teacher, before)
    batch = random_batch(module)
    assert torch.equal(module.compute(teacher.eval(), batch).logits, module.eval()(batch).logits)
    with weights.swapped(network, {name: value + 1 for name, value in before.items() if value.is_floating_point()}):
        assert network.lm_head.weight is network.model.embed_tokens.weight
        assert torch.equal(network.lm_head.weight, before["lm_head.weight"] + 1)
    assert torch.equal(network.lm_head.weight, before["lm_head.weight"])


@pytest.mark.parametrize("case", tiny_text.CASES)
def test_sites_leave_the_output_embedding_alone(case: str) -> None:
    module = tiny_text.CASES[case][0]()
    names = [site.name for site in module.sites("linear")]
    assert not [name for name in names if "lm_head" in name or "decoder" in name]
    assert len(names) == (2 * 7 if case == "causal_lm" else 2 * 6 + 1)
    roles = {site.role for site in module.sites("linear")}
    assert {"query", "key", "value"} <= roles


READ = """
import sys, torch, transformers
kind = getattr(transformers, sys.argv[2])
network, report = kind.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
known = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
ids = known("the sun and rain", return_tensors="pt").input_ids
torch.save({"ids": ids, "logits": network.eval()(input_ids=ids).logits.detach()}, sys.argv[3])
assert "mmcl" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny_text.CASES)
def test_transformers_alone_reads_the_export(tmp_path: Path, case: str) -> None:
    torch.manual_seed(0)
    module = tiny_text.CASES[case][0]()
    site = module.sites("linear")[0]
    site.attach(Constant(0.1 * torch.randn(site.shape)))
    folder = tmp_path / "out"
    folder.mkdir()
    module.export(folder, "transformers")
    kind = "AutoModelForCausalLM" if case == "causal_lm" else "AutoModelForMaskedLM"
    arguments = [sys.executable, "-c", READ, str(folder), kind, str(tmp_path / "logits.pt")]
    subprocess.run(arguments, check=True, capture_output=True, cwd=tmp_path)
    theirs = torch.load(tmp_path / "logits.pt")
    ours = module.eval().compute(module.network, {"input_ids": theirs["ids"]}).logits
    torch.testing.assert_close(ours, theirs["logits"], rtol=1e-5, atol=1e-6)
    again = type(module)(str(folder), block=tiny_text.BLOCK)
    torch.testing.assert_close(again.eval().compute(again.network, {"input_ids": theirs["ids"]}).logits, ours)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_tokenizers_of_other_models_are_refused(tmp_path: Path) -> None:
    small = tiny_text.write_model(tmp_path / "small", vocab_size=200)
    with pytest.raises(
        ConfigError, match="has 200 embeddings, but its tokenizer has 264 tokens; the tokenizer is another"
    ):
        tiny_text.causal(model=str(small))
    large = tiny_text.write_model(tmp_path / "large", vocab_size=1000)
    with pytest.raises(ConfigError, match="has 1000 embeddings, but its tokenizer has only 264 tokens"):
        tiny_text.causal(model=str(large))
    known = tiny_text.tokenizer()
    known.add_special_tokens({"pad_token": "<padding>"})
    known.save_pretrained(tmp_path / "added")
    with pytest.raises(ConfigError, match="has 264 embeddings, but its padding token is token 264"):
        tiny_text.causal(tokenizer=str(tmp_path / "added"))
    rounded = tiny_text.write_model(tmp_path / "rounded", vocab_size=320)
    assert tiny_text.causal(model=str(rounded)).network.lm_head.weight.shape[0] == 320


def test_a_bare_configuration_needs_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_text.model("causal")
    config = tmp_path / "own.json"
    config.write_text((folder / "config.json").read_text())
    with pytest.raises(ConfigError, match="is a bare configuration; name its tokenizer as well"):
        tiny_text.causal(model=str(config))
    assert tiny_text.causal(model=str(config), tokenizer=str(folder)).packing.end == 1
    with pytest.raises(ConfigError, match=r"tokenizer '.*' cannot be loaded"):
        tiny_text.causal(model=str(config), tokenizer=str(tmp_path))


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"block is 65, but model .* reads 64 tokens at most"):
        tiny_text.causal(block=65)
    with pytest.raises(ConfigError, match="block is 1; it must be 2 or more"):
        tiny_text.causal(block=1)
    with pytest.raises(ConfigError, match="has no token '<eot>', which was named as `end_token`"):
        tiny_text.causal(end_token="<eot>")
    with pytest.raises(ConfigError, match="share is 1"):
        tiny_text.masked(share=1)


def test_a_block_fits_the_positions_that_roberta_really_has(tmp_path: Path) -> None:
    tiny_text.write_model(tmp_path, "masked")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tiny_text.tokenizer()), pad_token_id=0, max_position_embeddings=20, **sizes)
    config.save_pretrained(tmp_path)
    module = tiny_text.masked(model=str(tmp_path), block=19)
    module(module.collate([{"__key__": "", **module.transform({"tokens": [9] * 18, "bytes": [1] * 18}, False)}]))
    with pytest.raises(ConfigError, match=r"block is 20, but model .* reads 19 tokens at most"):
        tiny_text.masked(model=str(tmp_path), block=20)


@pytest.mark.parametrize(("token", "calls"), [("<start>", 1), ("<end>", 1), ("<mask>", 4)])
def test_generation_ends_at_the_token_that_follows_documents(token: str, calls: int) -> None:
    module = tiny_text.causal(end_token="<start>")  # the model's own is <end>
    heard: list[int] = []

    def write(network: Any, given: Any, found: Any) -> None:
        heard.append(1)
        found.logits[..., tiny_text.SPECIALS.index(token)] = 100.0

    module.network.register_forward_hook(write)
    assert module.generate({"text": ["rain"]}, max_new_tokens=4).texts == [""]
    assert len(heard) == calls


# -- GGUF ------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, network: Any, architecture: str = "llama") -> None:
    """A Llama and its tokenizer in float32, as llama.cpp's converter names the tensors."""
    gguf = pytest.importorskip("gguf")
    config, known = network.config, tiny_text.tokenizer()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    model = json.loads(known.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3] * 4 + [1] * (config.vocab_size - 4))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(known.bos_token_id)
    writer.add_eos_token_id(known.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in network.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = value.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns the halves of each head into pairs
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_files_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = tiny_text.causal().eval()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, plain.network)
    module = tiny_text.causal(model=str(file), random_init=False).eval()
    batch = random_batch(module)
    torch.testing.assert_close(module(batch).logits, plain(batch).logits, rtol=1e-5, atol=1e-6)
    assert module.packing.encode(["the café"]) == plain.packing.encode(["the café"])
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out", "transformers")
    again = tiny_text.causal(model=str(tmp_path / "out"), random_init=False).eval()
    torch.testing.assert_close(again(batch).logits, plain(batch).logits, rtol=1e-5, atol=1e-6)


def test_other_gguf_files_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_text.causal().network, architecture="perceiver")
    with pytest.raises(ConfigError, match="perceiver") as unknown:
        tiny_text.causal(model=str(file), random_init=False)
    assert "\n" not in str(unknown.value)
    write_gguf(file, tiny_text.causal().network)
    whole = file.read_bytes()
    kind = whole.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8  # behind the two sizes
    unknown_type = whole[:kind] + (77).to_bytes(4, "little") + whole[kind + 4 :]
    for content in (whole[:300], whole[:-2000], unknown_type, b"GGUF" + bytes(200), b"no model at all"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"tiny\.gguf") as damaged:
            tiny_text.causal(model=str(file), random_init=False)
        assert "\n" not in str(damaged.value)
