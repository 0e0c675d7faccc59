import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mmcl.errors import ConfigError
from mmcl.modules import CLIPModule

Make = Callable[..., CLIPModule]


@pytest.fixture
def saved(make: Make, tools: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A folder with float16 weights, and the weights."""
    folder = tools.write(tmp_path / "saved")
    weights = {name: tensor.half() for name, tensor in make(seed=7).network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return SimpleNamespace(folder=folder, weights={name: tensor.float() for name, tensor in weights.items()})


def check(module: CLIPModule, weights: dict[str, torch.Tensor]) -> None:
    found = module.network.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    torch.testing.assert_close(found, weights, rtol=0, atol=0)


def test_a_folder_gives_architecture_weights_tokenizer_and_preprocessing(saved: SimpleNamespace) -> None:
    module = CLIPModule(f"local-dir:{saved.folder}")
    check(module, saved.weights)
    visual: Any = module.network.visual
    assert visual.preprocess_cfg["mean"] == [0.5, 0.4, 0.3]
    assert module.tokenize(["a cat", "zebra ."]).tolist()[0][:5] == [2, 3, 14, 19, 0]
    reference, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{saved.folder}")
    torch.testing.assert_close(module.network.state_dict(), reference.state_dict())
    assert repr(module.samples.plain) == repr(preprocess)
    tokens = open_clip.get_tokenizer(f"local-dir:{saved.folder}")(["a photo of a cat"])
    assert torch.equal(module.tokenize(["a photo of a cat"]), tokens)


def test_a_relative_folder_is_below_the_working_directory(saved: SimpleNamespace, monkeypatch: Any) -> None:
    monkeypatch.chdir(saved.folder.parent)
    module = CLIPModule("local-dir:saved")
    monkeypatch.chdir("/")
    check(module, saved.weights)
    module.build_network().load_state_dict(saved.weights)  # what was read is kept


def test_a_folder_can_be_trained_from_scratch(saved: SimpleNamespace) -> None:
    module = CLIPModule(f"local-dir:{saved.folder}", random_init=True)
    assert not torch.equal(module.network.state_dict()["visual.proj"], saved.weights["visual.proj"])


def test_data_of_a_package_is_found_by_its_name(saved: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "shop" / "models").mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    saved.folder.rename(tmp_path / "shop" / "models" / "tiny")
    monkeypatch.syspath_prepend(tmp_path)
    check(CLIPModule("package:shop/models/tiny"), saved.weights)
    with pytest.raises(ConfigError, match=r"no folder .*shop/models/tony"):
        CLIPModule("package:shop/models/tony")
    with pytest.raises(ConfigError, match="no package 'shopp'"):
        CLIPModule("package:shopp/models/tiny")


def test_a_json_file_gives_an_architecture(tools: SimpleNamespace, folder: Path) -> None:
    file = folder / "plain.json"
    file.write_text(json.dumps(tools.config(embed_dim=12)))
    module = CLIPModule(str(file))
    assert module(tools.batch(module)).features["image"].shape == (6, 12)


def test_random_weights_are_said(tools: SimpleNamespace, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who names an architecture may think that it brings the weights of that name."""
    file = folder / "plain.json"
    file.write_text(json.dumps(tools.config()))
    CLIPModule(str(file), random_init=True)
    assert not caplog.text
    CLIPModule(str(file))
    assert f"model '{file}' begins with random weights; give `pretrained` or `checkpoint`" in caplog.text


def test_open_clip_s_own_names_need_no_file(monkeypatch: Any) -> None:
    configs = {"nano": {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8}}}
    configs["nano"] |= {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    configs["nano"]["vision_cfg"] |= {"patch_size": 16}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "nano", configs["nano"])
    module = CLIPModule("nano")
    assert module.tokenize(["a cat"]).tolist()[0][:4] == [49406, 320, 2368, 49407]


@pytest.mark.parametrize("form", ["safetensors", "torch", "wrapped", "ddp", "trained alone", "mmcl", "half"])
def test_own_weights_in_every_form(make: Make, tmp_path: Path, form: str) -> None:
    weights = make(seed=3).network.state_dict()
    file = tmp_path / ("own.safetensors" if form == "safetensors" else "own.pt")
    if form == "safetensors":
        save_file(weights, file)
    elif form == "half":
        weights = {name: tensor.half().float() for name, tensor in weights.items()}
        torch.save({name: tensor.half() for name, tensor in weights.items()}, file)
    else:
        prefix = {"ddp": "module.", "trained alone": "network.", "mmcl": "module.network."}.get(form, "")
        content: dict[str, Any] = {prefix + name: tensor for name, tensor in weights.items()}
        if form == "mmcl":
            content["strategies.ewc.fisher"] = torch.zeros(3)
        torch.save({"state_dict": content, "step": 3} if form != "torch" else content, file)
    check(make(random_init=False, checkpoint=str(file)), weights)


def test_a_checkpoint_of_another_architecture_names_the_first_difference(
    make: Make, tools: SimpleNamespace, tmp_path: Path
) -> None:
    own = make().network.state_dict()
    file = tmp_path / "own.safetensors"

    def refusal(weights: dict[str, torch.Tensor]) -> str:
        save_file(weights, file)
        with pytest.raises(ConfigError) as caught:
            make(random_init=False, checkpoint=str(file))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    wide = tools.write(tmp_path / "wide", tools.config(embed_dim=40))
    message = refusal(make(model=f"local-dir:{wide}").network.state_dict())
    assert "is of another architecture than 'local-dir:" in message
    assert message.endswith("'text_projection' is (32, 40) in the file and (32, 24) in the model")
    assert "'visual.proj' is missing in the file" in refusal({k: v for k, v in own.items() if k != "visual.proj"})
    assert refusal(own | {"extra": torch.zeros(2)}).endswith("'extra' is (2,) in the file and missing in the model")


def test_unreadable_weights_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        make(random_init=False, checkpoint=str(tmp_path / "none.pt"))
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(ConfigError, match="cannot be read"):
            make(random_init=False, checkpoint=str(tmp_path / name))
    torch.save({"step": 3}, tmp_path / "empty.pt")
    with pytest.raises(ConfigError, match="holds no weights"):
        make(random_init=False, checkpoint=str(tmp_path / "empty.pt"))


def test_code_in_a_checkpoint_is_never_run(make: Make, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"x": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        make(random_init=False, checkpoint=str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "ran").exists()


def test_unknown_models_are_refused_in_one_line(tools: SimpleNamespace, tmp_path: Path) -> None:
    def refusal(*args: Any, **settings: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            CLIPModule(*args, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean ViT-B-32" in refusal("VIT-B-32x")
    assert "did you mean laion2b_s34b_b79k" in refusal("ViT-B-32", pretrained="laion2b_s34b_b79")
    assert "there is no folder" in refusal(f"local-dir:{tmp_path / 'none'}")
    assert "cannot be read" in refusal(f"local-dir:{tmp_path}")
    empty = tools.write(tmp_path / "empty")
    assert "no weights in" in refusal(f"local-dir:{empty}")
    assert "only one of" in refusal(f"local-dir:{empty}", random_init=True, checkpoint="x.pt")
    assert "is a tag of open_clip's own" in refusal(f"local-dir:{empty}", pretrained="openai")
    (tmp_path / "bad.json").write_text('{"embed_dim": 3}')
    assert "lacks vision_cfg, text_cfg" in refusal(str(tmp_path / "bad.json"))
    config = tools.config()
    config["vision_cfg"]["patches"] = 3
    assert "open_clip cannot build it" in refusal(
        f"local-dir:{tools.write(tmp_path / 'odd', config)}", random_init=True
    )
    assert "cannot be fetched from the hub" in refusal("hf-hub:nobody/nothing-of-this-name")


def test_a_vocabulary_must_fit_its_tokenizer(tools: SimpleNamespace, tmp_path: Path) -> None:
    config = tools.config()
    folder = tools.write(tmp_path / "first", config, end_last=False)
    with pytest.raises(ConfigError, match="takes the highest token id, but the end token is 0"):
        CLIPModule(f"local-dir:{folder}", random_init=True)
    del config["text_cfg"]["hf_tokenizer_name"]
    folder = tools.write(tmp_path / "small", config)
    with pytest.raises(ConfigError, match=r"vocab_size 20 is too small for CLIP's own tokenizer"):
        CLIPModule(f"local-dir:{folder}", random_init=True)
