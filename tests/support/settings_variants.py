"""Second rows: strategies at values that take another way through their code."""

from __future__ import annotations

from settings import Setting

from mmcl.strategies import Distillation, ExperienceReplay, WeightEnsemble, WeightInterpolation

SETTINGS = {
    "Distillation/reference": Setting(
        lambda: [Distillation("initial", "reference", texts="all", cache_images=True)],
        ("clip",),
        off=lambda: [Distillation(image_to_text=0, text_to_image=0)],
    ),
    "ExperienceReplay/class_balanced": Setting(lambda: [ExperienceReplay(6, rule="class_balanced")], ("classes",)),
    "ExperienceReplay/herding": Setting(lambda: [ExperienceReplay(6, rule="herding")], ("classes",)),
    "ExperienceReplay/k_means": Setting(lambda: [ExperienceReplay(6, rule="k_means")], ("clip",)),
    "WeightEnsemble/alpha": Setting(lambda: [WeightEnsemble(1, alpha=0.5)], ("clip",)),
    "WeightInterpolation/merge": Setting(lambda: [WeightInterpolation(0.8, "start", merge=True)], ("clip",)),
}
