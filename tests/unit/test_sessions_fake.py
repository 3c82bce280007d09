"""The fake backend, which the other tests lean on, and the registry of backends."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import scaler_inputs, write_scaler

from captory_engine.errors import BadModel, BadOutput, InvalidInput, Unavailable
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions import registry
from captory_engine.sessions.base import Session, TensorSpec
from captory_engine.sessions.fake import FakeSession, fail_on, nan_rows, slow, wrong_shape
from captory_engine.sessions.options import SessionOptions

SPECS = (
    [TensorSpec("x", np.dtype(np.float32), (-1, 3)), TensorSpec("t", np.dtype(np.float32), ())],
    [
        TensorSpec("y", np.dtype(np.float32), (-1, 5)),
        TensorSpec("n", np.dtype(np.int64), ()),
        TensorSpec("flag", np.dtype(np.bool_), (2,)),
    ],
)


def rows(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.random((batch, 7, 3), np.float32), "t": rng.random(batch, np.float32)}


def test_outputs_are_as_declared() -> None:
    outputs = FakeSession("fake", *SPECS).run(rows(4))
    assert {name: (array.dtype.name, array.shape) for name, array in outputs.items()} == {
        "y": ("float32", (4, 7, 5)),
        "n": ("int64", (4,)),
        "flag": ("bool", (4, 2)),
    }
    assert np.abs(outputs["y"]).max() <= 1
    assert outputs["n"].min() >= 0


def test_a_row_depends_on_itself_alone() -> None:
    together = rows(5)
    session = FakeSession("fake", *SPECS)
    all_rows = session.run(together)
    for row in range(5):
        alone = session.run({name: array[row : row + 1] for name, array in together.items()})
        for name, array in alone.items():
            np.testing.assert_array_equal(array[0], all_rows[name][row])
    assert len({row.tobytes() for row in all_rows["y"]}) == 5


def test_records_batch_sizes_and_checks_inputs() -> None:
    session = FakeSession("fake", *SPECS, max_batch=3)
    session.run(rows(2))
    session.run(rows(3))
    with pytest.raises(InvalidInput):
        session.run(rows(4))
    assert session.batches == [2, 3]


def test_fails_on_the_calls_it_is_told() -> None:
    session = FakeSession("fake", *SPECS, faults=[fail_on(2)])
    session.run(rows(1))
    with pytest.raises(Unavailable):
        session.run(rows(1))
    session.run(rows(1))


def test_nan_only_in_the_chosen_row() -> None:
    inputs = rows(3)
    marked = inputs["t"][1]
    session = FakeSession("fake", *SPECS, faults=[nan_rows("y", lambda given, row: given["t"][row] == marked)])
    bad = ~np.isfinite(session.run(inputs)["y"]).all(axis=(1, 2))
    assert bad.tolist() == [False, True, False]


def test_wrong_shape_is_bad_output() -> None:
    with pytest.raises(BadOutput):
        FakeSession("fake", *SPECS, faults=[wrong_shape("y")]).run(rows(2))


def test_slow_waits_on_the_callers_clock() -> None:
    waited: list[float] = []
    FakeSession("fake", *SPECS, faults=[slow(waited.append, 0.5)]).run(rows(1))
    assert waited == [0.5]


def test_down_and_up_again_and_closed() -> None:
    session = FakeSession("fake", *SPECS)
    session.down = True
    with pytest.raises(Unavailable):
        session.run(rows(1))
    session.down = False
    session.run(rows(1))
    session.close()
    with pytest.raises(Unavailable):
        session.run(rows(1))


def test_registry_opens_each_backend_on_the_same_folder(tmp_path: Path) -> None:
    write_scaler(tmp_path)
    model = open_model(tmp_path, "scaler")
    for backend in ("onnx", "fake"):  # torch opens a checkpoint's folder, triton asks a server, tensorrt has engines
        session = registry.open_session(backend, model, SessionOptions(num_threads=1))
        assert session.run(scaler_inputs(2))["y"].shape == (2, 2, 3)
        assert (session.name, session.digest, session.max_batch) == ("scaler", model.digest, 4)
        session.close()


def test_registry_says_which_backends_there_are(tmp_path: Path) -> None:
    write_scaler(tmp_path)
    with pytest.raises(BadModel, match="there are fake, onnx"):
        registry.open_session("nothing", open_model(tmp_path, "scaler"))


def test_registry_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_more(model: ModelFolder, options: SessionOptions) -> Session:
        raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")

    monkeypatch.setitem(registry.BACKENDS, "tensorrt", (needs_more, "captory[tensorrt]"))
    write_scaler(tmp_path)
    with pytest.raises(BadModel, match=r"pip install 'captory\[tensorrt\]'"):
        registry.open_session("tensorrt", open_model(tmp_path, "scaler"))
