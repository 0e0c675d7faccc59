"""Perplexity weighted by tokens: the parity arrays, batches, ranks, and what cannot be measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcl.errors import ConfigError, RunError
from mmcl.metrics.perplexity_probe import PerplexityProbe
from mmcl.metrics.probes import build
from mmcl.outputs import Outputs
from mmcl.stream import EvalSet, Source

FILE = Path(__file__).parents[1] / "parity" / "metrics" / "perplexity_ragged.json"
CASE = json.loads(FILE.read_text())["cases"][0]


def same(tensor: Tensor) -> Tensor:
    return tensor


def logits_of(loss: float) -> list[float]:
    """Two logits of which the first one has this loss."""
    return [0.0, math.log(math.expm1(loss))]


def batch_of(sequences: list[list[float]], size: int = 0) -> tuple[dict[str, Any], Outputs]:
    """Ragged losses padded to one length; all bytes are the first token's."""
    longest = max(map(len, sequences)) + 2
    rows = [[*map(logits_of, row), *[[9.0, -9.0]] * (longest - len(row))] for row in sequences]
    logits = torch.tensor(rows, dtype=torch.float64)
    valid = torch.tensor([[i < len(row) for i in range(longest)] for row in sequences])
    sizes = torch.full((len(sequences), longest), 99)
    sizes[valid] = 0
    sizes[0, 0] = size
    targets = torch.where(valid, 0, -100)
    return {"target_bytes": sizes}, Outputs(logits=logits, targets=targets, valid=valid)


def probe_of(batches: list[tuple[dict[str, Any], Outputs]], **options: Any) -> PerplexityProbe:
    probe = PerplexityProbe(**options)
    probe.start(None)  # type: ignore[arg-type]
    for batch, outputs in batches:
        probe.update(batch, outputs)
    return probe


@pytest.mark.parametrize("domain", CASE["inputs"]["token_losses"])
def test_parity(domain: str) -> None:
    losses, size = CASE["inputs"]["token_losses"][domain], CASE["inputs"]["utf8_bytes"][domain]
    result = probe_of([batch_of(losses, size)]).compute(same, same)
    assert result.value == pytest.approx(CASE["expected"]["ppl"][domain], abs=1e-9)
    assert result.metrics["bits_per_byte"] == pytest.approx(CASE["expected"]["bits_per_byte"][domain], abs=1e-9)
    assert (result.count, result.metrics["bytes"]) == (sum(map(len, losses)), size)
    bits = probe_of([batch_of(losses, size)], metric="bits_per_byte").compute(same, same)
    assert bits.value == result.metrics["bits_per_byte"]


def test_parity_of_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same to 1e-9, with the losses of the arrays themselves."""
    for domain, rows in CASE["inputs"]["token_losses"].items():
        size = CASE["inputs"]["utf8_bytes"][domain]
        given = [
            (torch.tensor(row, dtype=torch.float64), torch.tensor([size if i == 0 else 0]))
            for i, row in enumerate(rows)
        ]
        monkeypatch.setattr("mmcl.metrics.perplexity_probe._rows", lambda batch, outputs, given=given: given)
        metrics = probe_of([({}, Outputs())]).compute(same, same).metrics
        assert metrics["perplexity"] == pytest.approx(CASE["expected"]["ppl"][domain], abs=1e-9)
        assert metrics["bits_per_byte"] == pytest.approx(CASE["expected"]["bits_per_byte"][domain], abs=1e-9)


def test_batches_and_ranks_change_nothing() -> None:
    losses = [row for rows in CASE["inputs"]["token_losses"].values() for row in rows]
    whole = probe_of([batch_of(losses, 70)]).compute(same, same)
    assert whole.value == pytest.approx(CASE["expected"]["pooled_ppl"], rel=1e-6)
    single = probe_of([batch_of([row], 70 * (i == 0)) for i, row in enumerate(losses)]).compute(same, same)
    ranks = [probe_of([batch_of(losses[:2], 70)]), probe_of([batch_of(losses[2:])])]
    held = iter([ranks[0].counts + ranks[1].counts, ranks[0].loss + ranks[1].loss])
    shared = ranks[0].compute(lambda _: next(held), same)
    for other in (single, shared):
        assert other.count == whole.count and other.metrics["bytes"] == whole.metrics["bytes"]
        assert other.value == pytest.approx(whole.value, rel=1e-12)


def test_samples_without_bytes() -> None:
    _, outputs = batch_of([[1.0, 2.0]])
    result = probe_of([({}, outputs)]).compute(same, same)
    assert "bits_per_byte" not in result.metrics and result.value == pytest.approx(math.exp(1.5))
    with pytest.raises(RunError, match="bits_per_byte needs samples"):
        probe_of([({}, outputs)], metric="bits_per_byte").compute(same, same)
    assert probe_of([]).predict({}, outputs) == [{"tokens": 2, "loss": pytest.approx(1.5)}]


def test_what_cannot_be_measured() -> None:
    with pytest.raises(RunError, match="no token to predict"):
        probe_of([batch_of([[]])]).compute(same, same)
    batch, outputs = batch_of([[1.0]])
    outputs.logits[0, 0] = math.nan
    with pytest.raises(RunError, match="the loss of the evaluation set is nan"):
        probe_of([(batch, outputs)]).compute(same, same)
    with pytest.raises(RunError, match="the module predicts no tokens"):
        probe_of([({}, Outputs())])


def test_options() -> None:
    module = SimpleNamespace(probes={"perplexity"}, predicted="next tokens", target_bytes=True)
    evalset = EvalSet("e", Source(["a.tar"]), "perplexity", options={"metric": "bits_per_byte"})
    probe = build(evalset, module)
    assert (probe.metric, probe.direction) == ("bits_per_byte", "lower")
    assert probe.protocol == "bits per UTF-8 byte of next tokens, weighted by tokens"
    with pytest.raises(ConfigError, match="option metric 'perplexty' is unknown; did you mean perplexity"):
        build(EvalSet("e", Source(["a.tar"]), "perplexity", options={"metric": "perplexty"}), module)
