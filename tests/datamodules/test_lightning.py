"""Lightning's Trainer takes the loaders as they are, fit after fit."""

import lightning.pytorch as pl
import pytest
import torch


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated = [], []

    def training_step(self, batch, _):
        self.seen.append(batch["__index__"].tolist())
        return (self.weight * batch["image"].mean()).square().mean()

    def validation_step(self, batch, _):
        self.validated += batch["__index__"][batch["valid"]].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_fits_over_segments_and_validates(make_data, make_source, draw_batches, workers, tmp_path):
    source = make_source((10, 10))
    data = make_data(source, workers=workers, accumulate=2)
    (task,) = data.stream.tasks
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=0,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    plan, positions = data.plan(task), {}
    for segment, steps in enumerate([3, 4]):
        loader = data.train_loader(task, positions=positions, segment=segment, first_step=0, steps=steps)
        trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + steps
        trainer.fit(module, loader)
        positions = data.advance(positions, plan, steps)
    assert trainer.global_step == 7
    assert module.seen == [b["__index__"].tolist() for b in draw_batches(data, steps=7)]
    trainer.validate(module, data.eval_loader(source), verbose=False)
    assert module.validated == list(range(20))
