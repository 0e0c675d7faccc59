"""Classifiers on frozen or slowly trained features, as rows of the strategies' table."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import APER, SLCA, DPeCLIP, FlyCL, NearestMean, RanPAC, SimpleCIL

NO_NAMES = "task 'dots' has no class names"
REFUSED = {"clip": NO_NAMES, "causal_lm": "needs 'features.image', which CausalLMModule does not provide"}

SETTINGS = {
    "NearestMean": Setting(lambda: [NearestMean()], ("classes", "clip-classes"), changes="", refuses=REFUSED),
    "NearestMean/trained": Setting(lambda: [NearestMean(trains="all")], ("classes", "domains", "clip-classes")),
    "SimpleCIL": Setting(lambda: [SimpleCIL()], ("classes", "clip-classes"), changes=""),
    "APER": Setting(lambda: [APER()], ("classes-growing", "clip-classes"), refuses={"clip": NO_NAMES}),
    "RanPAC": Setting(lambda: [RanPAC(32)], ("classes", "domains"), changes="", refuses=REFUSED),
    "RanPAC/first": Setting(lambda: [RanPAC(32, ridge=1.0, trains="first")], ("classes-growing", "clip-classes")),
    "FlyCL": Setting(lambda: [FlyCL(32)], ("classes", "clip-classes"), changes=""),
    "SLCA": Setting(
        lambda: [SLCA(backbone_scale=0.1, epochs=2, samples=8)],
        ("classes-growing", "classes", "domains"),
        off=lambda: [SLCA(backbone_scale=1.0, epochs=0)],
        refuses={"clip-classes": "SLCA needs 'head.linear', which CLIPModule does not provide"},
    ),
    "DPeCLIP": Setting(
        lambda: [DPeCLIP()],
        ("clip-classes",),
        changes="",
        refuses={"clip": NO_NAMES, "classes": "DPeCLIP needs 'features.text', which ImageClassifierModule"},
    ),
}
