"""The page on language models: its own config runs, and what it exports is read by transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
import tiny_text
import transformers
import yaml

from mmcl.datamodules import write_shard

PAGE = Path(__file__).resolve().parents[2] / "docs" / "text.md"


@pytest.mark.slow
def test_the_page_on_language_models(tmp_path: Path) -> None:
    own, bits, again = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S))
    tiny_text.write_model(tmp_path / "models" / "my-llm")
    own["model"]["init_args"] |= {"block": 16, "random_init": True}
    stream = own["data"]["stream"]
    stream["tasks"] = again["tasks"]
    stream["tasks"][0] |= {"budget": {"tokens": 16 * 16 * 4}, "evaluates": "news"}
    stream["evals"].append({**bits["evals"][0], "name": "bits"})
    own["trainer"] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    (tmp_path / "news.yaml").write_text(yaml.safe_dump(own))
    for name, kind in (("news-train", "weather"), ("news-test", "weather"), ("upstream-train", "plain")):
        write_shard(tmp_path / f"{name}.tar", tiny_text.documents(kind, 40, seed=len(name)))
    write_shard(tmp_path / "upstream-test.tar", tiny_text.documents("plain", 10, seed=7))
    done = tiny.mmcl(
        "fit", "--config", "news.yaml", "--run_dir", "run", cwd=tmp_path, MMCL_CACHE=str(tmp_path / "kept")
    )
    assert done.returncode == 0, done.stderr
    matrix = tiny.results(tmp_path / "run")["matrix"]
    assert set(matrix["directions"].values() if isinstance(matrix["directions"], dict) else matrix["directions"]) == {
        "lower"
    }
    first, last = matrix["values"]
    assert last[0] < first[0] and last[2] < first[2] < 12 < first[0]
    rates = [record["lr"] for record in tiny.metrics(tmp_path / "run") if "lr" in record]
    assert len(rates) == 4 and rates[-1] == pytest.approx(0.1 * own["model"]["init_args"]["lr"])
    done = tiny.mmcl("export", "run", "--to", "out", "--format", "transformers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 264
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == 264
