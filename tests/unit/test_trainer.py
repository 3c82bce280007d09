"""The training loop: a killed run that goes on equals one that was never interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

from captory_training.trainer import (  # noqa: E402
    CHECKPOINT,
    Draw,
    Plan,
    Progress,
    Trainer,
    draw,
    learning_rate_share,
    load_ema,
)

NUM_ITEMS = 20


def make_trainer(folder: Path, max_steps: int) -> tuple[Trainer, list[list[int]]]:
    """A line fitted with noise that each step draws; the batches seen are kept."""
    torch.manual_seed(0)
    line = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    seen: list[list[int]] = []

    def loss(drawn: Draw) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append(drawn.indices.tolist())
        x = torch.from_numpy(drawn.indices).float()[:, None] / NUM_ITEMS
        noise = 0.01 * torch.randn(x.shape, generator=drawn.generator)
        return torch.nn.functional.mse_loss(line(x), 3 * x + noise), {}

    plan = Plan(seed=3, batch_size=4, max_steps=max_steps, warmup_steps=2, log_steps=1)
    return Trainer(line, loss, NUM_ITEMS, plan, folder), seen


def kill_after(trainer: Trainer, steps: int) -> None:
    """Run `steps` steps and save, as a run does that is killed after a checkpoint."""
    trainer.module.train()
    for _ in range(steps):
        trainer.step()
        trainer.progress = Progress(trainer.progress.step + 1)
    trainer.save()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, batches = make_trainer(tmp_path / "whole", 12)
    whole.run()
    first, before = make_trainer(tmp_path / "killed", 12)
    kill_after(first, 5)
    second, after = make_trainer(tmp_path / "killed", 12)
    second.run()
    assert before + after == batches
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name
    assert all(torch.equal(value, second.ema[name]) for name, value in whole.ema.items())


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    make_trainer(tmp_path, 3)[0].run()
    again, batches = make_trainer(tmp_path, 3)
    again.run()
    assert batches == []


def test_a_half_written_checkpoint_is_not_read(tmp_path: Path) -> None:
    make_trainer(tmp_path, 3)[0].run()
    (tmp_path / f"{CHECKPOINT}.tmp").write_bytes(b"torn")
    assert make_trainer(tmp_path, 3)[0].progress.step == 3


def test_another_seed_needs_another_folder(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, 3)
    trainer.run()
    with pytest.raises(ValueError, match="another seed"):
        Trainer(trainer.module, trainer.loss, NUM_ITEMS, Plan(seed=4, batch_size=4, max_steps=3), tmp_path)


def test_the_ema_and_the_curve_are_left_behind(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, 6)
    ema = trainer.run()
    assert all(torch.equal(value, load_ema(tmp_path)[name]) for name, value in ema.items())
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "loss.png").exists()


def test_a_probe_sees_the_ema_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, 4)
    seen = []
    trainer.probe = lambda module, progress: seen.append(json.dumps(progress)) or {"score": 1.0}
    trainer.plan = Plan(seed=3, batch_size=4, max_steps=4, probe_minutes=0)
    trainer.run()
    assert len(seen) == 4
    assert "score" in (tmp_path / "probe.csv").read_text()


def test_an_epoch_sees_every_item_once() -> None:
    epoch = np.concatenate([draw(1, step, 4, NUM_ITEMS).indices for step in range(5)])
    assert sorted(epoch.tolist()) == list(range(NUM_ITEMS))
    assert draw(1, 5, 4, NUM_ITEMS).indices.tolist() != draw(1, 0, 4, NUM_ITEMS).indices.tolist()


def test_the_learning_rate_rises_then_falls() -> None:
    plan = Plan(max_steps=100, warmup_steps=10, final_lr_share=0.1)
    shares = [learning_rate_share(plan, Progress(step)) for step in range(101)]
    assert shares[0] < shares[5] < shares[9]
    assert max(shares) == max(shares[9:12])
    assert shares[100] == pytest.approx(0.1)


def test_a_plan_must_end() -> None:
    with pytest.raises(ValueError, match="max_steps or max_minutes"):
        Plan()
