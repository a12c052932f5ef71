"""What a run writes for wandb, read from its offline files."""

import importlib
import importlib.util
import json
import struct
from pathlib import Path

import pytest
import yaml
from commands import DISTILL, EXPERTS, METRICS, distill, read_log, toy

import buffer
import distill_lors


def offline_history(directory):
    """Per wandb run that was written offline: (run id, its history, a dict a line), read from the .wandb file
    itself.

    A LevelDB log: after seven bytes, blocks of 32 KiB of records (checksum, length, kind), whose parts
    together are a protobuf.
    """
    versions = sorted(
        path.name
        for path in Path(importlib.util.find_spec("wandb.proto").submodule_search_locations[0]).glob("v[0-9]")
    )
    messages = importlib.import_module(f"wandb.proto.{versions[-1]}.wandb_internal_pb2")
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        data, at, part, history, name = file.read_bytes(), 7, b"", [], None
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            size, kind = struct.unpack("<4xHB", data[at : at + 7]) if left >= 7 else (0, 0)
            if not kind:  # the rest of a block is padding
                at += left
                continue
            part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record, part = messages.Record.FromString(part), b""
                name = record.run.run_id or name
                if record.history.item:
                    history.append(
                        {
                            item.key or ".".join(item.nested_key): json.loads(item.value_json)
                            for item in record.history.item
                        }
                    )
        yield name, history


def test_an_offline_wandb_run_holds_every_curve_and_panel_and_goes_on(here):
    run = ["--wandb", "offline", "--num_eval", "1", "--check_gradient", "1"]
    directory = distill(here, "offline", *run, "--Iteration", "2")
    argv = [
        *toy(here),
        *DISTILL,
        "--buffer_path",
        f"{here}/buffers",
        "--name",
        "offline",
        *run,
        "--Iteration",
        "3",
    ]
    distill_lors.main(argv)  # the same command again
    (first, history), (second, continued) = offline_history(directory)
    assert first == second == yaml.safe_load((directory / "args.yaml").read_text())["_run"]["id"]
    wandb_lines = {int(line["_step"]): line for line in history + continued}
    log = {line["step"]: line for line in read_log(directory)}
    assert sorted(wandb_lines) == sorted(log) == [0, 1, 2, 3]
    for step, line in log.items():
        numbers = {key: value for key, value in line.items() if key not in ("program", "step", "time")}
        assert {key: wandb_lines[step][key] for key in numbers} == pytest.approx(numbers)
    assert {f"{name}/{key}" for name in ("Mean", "Std") for key in METRICS} <= set(wandb_lines[2])
    assert {
        "Loss/grand",
        "Loss/img_grand",
        "Loss/txt_grand",
        "Loss/train_loss",
        "Synthetic_LR/Image",
        "Synthetic_LR/Text",
    } <= set(wandb_lines[2])
    for step in (0, 2, 3):
        panel = wandb_lines[step]
        assert panel["Synthetic_Images._type"] == "images/separated" and panel["Synthetic_Images.count"] == 6
        assert (
            len(panel["Synthetic_Images.captions"]) == 6 and panel["Synthetic_Sentences._type"] == "html-file"
        )
    buffer.main(
        [
            *toy(here),
            *EXPERTS,
            "--num_experts",
            "1",
            "--buffer_path",
            f"{here}/wandb_experts",
            "--name",
            "wandb_experts",
            "--wandb",
            "offline",
        ]
    )
    ((_, epochs),) = offline_history(here / "logged_files/toy/wandb_experts")
    assert {f"Results/{key}" for key in METRICS} <= set(epochs[-1]) and all(
        "Loss/train_loss" in line for line in epochs
    )
