"""What a run writes to TensorBoard and to its log, also after it was killed and resumed."""

import json
import math
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mmldm_scale.config import TrainingConfig
from mmldm_scale.training.monitoring.logger import Logger


def events(run: Path) -> EventAccumulator:
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    reader.Reload()
    return reader


def test_resumed_run_shows_each_step_once(tmp_path) -> None:
    first = Logger(tmp_path, 0, 100)
    for seen in (10, 20, 30):
        first.scalars(seen, {"loss": float(seen)})
    first.close()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"samples_seen": 40, "lo')  # killed in the middle of a line
    begun = int(time.time())
    while int(time.time()) == begun:  # TensorBoard orders a run's files by the second in which they were begun
        time.sleep(0.01)
    second = Logger(tmp_path, 20, 100)
    second.scalars(30, {"loss": 31.0})
    second.close()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["samples_seen"], r["loss"]) for r in records] == [(10, 10.0), (20, 20.0), (30, 31.0)]
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")] == [(10, 10.0), (20, 20.0), (30, 31.0)]


def test_a_first_step_that_is_shown_without_a_speed_has_none(tmp_path, capsys) -> None:
    logger = Logger(tmp_path, 0, 100)
    logger.show(10, {"loss": 1.0})
    logger.scalars(20, {"loss": 0.5, "speed/samples_per_second": 3.0})
    shown, logged = capsys.readouterr().err.splitlines()
    assert shown.startswith("10/100 samples  loss 1.0000  ")
    assert "/s" not in shown
    assert logged.startswith("20/100 samples  loss 0.5000  3.0/s  ")


def test_a_runs_first_start_is_remembered_though_all_that_it_logged_is_dropped(tmp_path, monkeypatch) -> None:
    def start(now: float) -> Logger:
        monkeypatch.setattr(time, "time", lambda: now)
        return Logger(tmp_path, 0, 100)

    start(1000.0).scalars(10, {"loss": 1.0})
    start(1100.0).close()  # killed before its first record
    last = start(1200.0)
    monkeypatch.setattr(time, "time", lambda: 1300.0)
    last.scalars(10, {"loss": 1.0})
    (record,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (record["time_of_first_start"], record["time_of_start"]) == (1000.0, 1200.0)
    assert record["speed/goodput"] == 1 / 3


def test_tensorboard_draws_into_one_chart_what_is_compared_and_shows_the_settings(tmp_path) -> None:
    logger = Logger(tmp_path, 0, 100)
    logger.configuration(TrainingConfig(seed=7))
    logger.scalars(10, {"loss": 1.0, "training/gradient_norm": 2.0, "weighted/a.b": 0.3, "weighted/c": math.nan})
    quarter = {f"{kind}loss_by_time/audio/0-249": 0.7 for kind in ("", "validation/")}
    logger.scalars(20, {"loss": 0.9, "validation/loss": 0.8, "weighted/c": 0.1, **quarter})
    logger.close()
    found = events(tmp_path)
    written = found.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    pages = Layout.FromString(written).category
    charts = {page.title: {chart.title: [*chart.multiline.tag] for chart in page.chart} for page in pages}
    assert charts == {
        "Does it learn?": {
            "loss": ["^loss$", "^validation/loss$"],
            "term of the loss, times its weight: a.b": [r"^weighted/a\.b$"],
            "term of the loss, times its weight: c": ["^weighted/c$"],
        },
        "At which noise, and by which term?": {
            "loss, audio, at timesteps 0-249": [
                r"^loss_by_time/audio/0\-249$",
                r"^validation/loss_by_time/audio/0\-249$",
            ]
        },
        "Is it stable?": {"gradient norm": ["^training/gradient_norm$"]},
        "Is it quick?": {"goodput": ["^speed/goodput$"]},
    }
    assert "    seed: 7\n" in found.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    session = HParamsPluginData.FromString(found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    settings = session.session_start_info.hparams
    assert (settings["seed"].number_value, settings["precision"].string_value) == (7, "bf16")
    assert settings["ema_lengths"].string_value == "[0.05, 0.1]"
