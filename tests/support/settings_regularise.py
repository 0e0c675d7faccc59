"""Penalties by importance, projections of gradients and replay with memories, as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import (
    AGEM,
    EWC,
    GEM,
    MAS,
    CenterLoss,
    DERPlusPlus,
    GeRe,
    L2Init,
    SynapticIntelligence,
)

EVERY = ("clip", "classes", "causal_lm", "asr-whisper")
"""One module of each family."""
GROWING = ("classes-growing",)
COUPLED = {"clip": "no sample has a loss of its own"}
NO_CLASSES = {case: "needs 'features'" for case in ("causal_lm", "asr-whisper")}
ACCUMULATION = "accumulation_equals_the_large_batch"
REFERENCES = {ACCUMULATION: "the references of the accumulated batches weigh alike, however many targets they hold"}
UNHARMED = {**REFERENCES, "leaves_a_mark": "no step of so short a run points against the memory"}
SIDE = {ACCUMULATION: "the mean over a side batch is taken within each of the accumulated batches"}

SETTINGS = {
    "AGEM": Setting(lambda: [AGEM(8, batch_size=4)], ("classes", "causal_lm", *GROWING), skips=REFERENCES),
    "AGEM/unharmed": Setting(lambda: [AGEM(8, batch_size=4)], ("clip", "asr-whisper"), skips=UNHARMED),
    "CenterLoss": Setting(
        lambda: [CenterLoss(0.1)], ("classes", "domains", *GROWING), off=lambda: [CenterLoss(0.0)], refuses=NO_CLASSES
    ),
    "DERPlusPlus": Setting(
        lambda: [DERPlusPlus(8, batch_size=4)],
        (*EVERY, *GROWING),
        off=lambda: [DERPlusPlus(8, alpha=0.0, beta=0.0)],
        skips=SIDE,
    ),
    "EWC": Setting(lambda: [EWC(100.0, limit=16, batch_size=8)], (*EVERY, *GROWING), off=lambda: [EWC(0.0, limit=16)]),
    "EWC/per_sample": Setting(
        lambda: [EWC(10.0, estimator="per_sample", limit=6, gamma=0.9)],
        ("classes", "causal_lm", "asr-whisper"),
        off=lambda: [EWC(0.0, estimator="per_sample")],
        refuses=COUPLED,
    ),
    "GEM": Setting(lambda: [GEM(8, batch_size=4)], ("classes", "causal_lm", *GROWING), skips=REFERENCES),
    "GEM/unharmed": Setting(lambda: [GEM(8, batch_size=4)], ("clip", "asr-whisper"), skips=UNHARMED),
    "GeRe": Setting(
        lambda: [GeRe("reference", batch_size=4)],
        ("causal_lm", "clip", "asr-whisper"),
        off=lambda: [GeRe("reference", weight=0.0, label_weight=0.0)],
        skips=SIDE,
    ),
    "GeRe/activations": Setting(
        lambda: [GeRe("reference", label_weight=0.0, teacher="previous", batch_size=4)],
        (*EVERY, *GROWING),
        skips=SIDE,
    ),
    "L2Init": Setting(lambda: [L2Init(0.01)], (*EVERY, *GROWING), off=lambda: [L2Init(0.0)]),
    "MAS": Setting(lambda: [MAS(0.1, limit=16, batch_size=8)], (*EVERY, *GROWING), off=lambda: [MAS(0.0)]),
    "MAS/per_sample": Setting(lambda: [MAS(0.1, estimator="per_sample", limit=6)], EVERY),
    "SynapticIntelligence": Setting(
        lambda: [SynapticIntelligence(1.0)], (*EVERY, *GROWING), off=lambda: [SynapticIntelligence(0.0)]
    ),
    "SynapticIntelligence/approximate": Setting(lambda: [SynapticIntelligence(1.0, approximate=True)], ("classes",)),
}
