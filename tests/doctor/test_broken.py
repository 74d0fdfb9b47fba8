"""``mmldm doctor`` on machines, environments and data that are really broken: its lines and its exit status."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mmldm_scale.cli import main
from mmldm_scale.common import processes
from mmldm_scale.config import MediaConfig
from mmldm_scale.doctor import devices, host, software, storage
from mmldm_scale.doctor.findings import Finding
from mmldm_scale.models import attention as kernels
from tests.support.datasets.latent_sets import write_latents
from tests.support.small_disk import mount_small_disk

Doctor = Callable[..., tuple[int, list[str]]]
SMALL = """
model: {depth: 1, width: 16, heads: 2, context_tokens: 2, context_width: 4}
training: {precision: fp32, workers: 0, ema_lengths: [0.1], keep_checkpoints: 2}
"""


def latents(folder: Path, **fields: object) -> Path:
    """Write a latent set about whose contents the doctor has nothing to say; see :func:`write_latents`."""
    return write_latents(folder, **({"media": MediaConfig()} | fields))


@pytest.fixture
def doctor(capsys, tmp_path: Path) -> Doctor:
    """Runs ``mmldm doctor --quick``; returns its status and the lines that are not ok, less the warning of no GPU."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        where = [] if "--run" in arguments or any("run=" in str(a) for a in arguments) else ["--run", tmp_path / "run"]
        status = main(["doctor", "--quick", *map(str, [*arguments, *where])])
        lines = capsys.readouterr().out.splitlines()
        assert all(re.match(r"(ok|warning|error) +\S", line) for line in lines)
        return status, [line for line in lines if not re.match("ok|warning  GPU +none; computing on the CPU", line)]

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte in memory."""
    with mount_small_disk(tmp_path / "disk", 1024) as folder:
        yield folder


def test_a_working_machine_and_a_complete_set_are_ok(doctor: Doctor, tmp_path: Path, capsys) -> None:
    assert doctor("--shards", latents(tmp_path / "set", sizes=(8, 8))) == (0, [])
    assert not (tmp_path / "run").exists()


def test_an_audio_image_that_loses_mel_frames(doctor: Doctor, tmp_path: Path) -> None:
    status, lines = doctor("--shards", latents(tmp_path / "set", media=MediaConfig(fps=4)))
    assert (status, len(lines)) == (0, 1)
    text = "media.audio.hop_length=256: 345 mel frames in the 256 columns of the audio image"
    assert lines[0].startswith(f"warning  audio image    {tmp_path / 'set'}: {text}")


def test_a_missing_and_an_old_package(doctor: Doctor, tmp_path: Path, monkeypatch) -> None:
    old = tmp_path / "site/deepspeed-0.10.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    required = software.metadata.requires("mmldm_scale")
    monkeypatch.setattr(software.metadata, "requires", lambda name: [*required, "no-such-package>=1"])
    status, lines = doctor()
    assert status == 1
    assert "deepspeed 0.10.0 is installed, <0.20,>=0.19 is required; make install" in lines[0]
    assert "no-such-package is not installed, >=1 is required" in lines[1]


def test_a_flipped_bit_in_a_tar(doctor: Doctor, tmp_path: Path) -> None:
    tar = latents(tmp_path / "set") / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    status, lines = doctor("--shards", tar.parent)
    assert status == 1
    assert lines == [
        f"error    shards         {tar}: its content does not match its sha256; the file is damaged; "
        "copy it again, or `python data_tools/shard.py repair`"
    ]


def test_truncated_and_missing_tars(doctor: Doctor, tmp_path: Path) -> None:
    folder = latents(tmp_path / "set", sizes=(4, 4, 4))
    (folder / "shard-000001.tar").unlink()
    with (folder / "shard-000002.tar").open("r+b") as tar:
        tar.truncate(1024)
    status, lines = doctor("--shards", folder)
    assert (status, len(lines)) == (1, 2)
    assert f"{folder}/shard-000001.tar: missing" in lines[0]
    assert re.search(r"shard-000002.tar: [\d,]+ bytes expected, 1,024 found", lines[1])


def test_a_truncated_manifest(doctor: Doctor, tmp_path: Path) -> None:
    manifest = latents(tmp_path / "set") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    status, lines = doctor("--shards", manifest.parent)
    assert status == 1
    assert f"{manifest}: its content does not match its checksum" in lines[0]


def test_an_unreachable_set(doctor: Doctor) -> None:
    status, lines = doctor("--shards", "ftp://127.0.0.1:1/latents")
    assert status == 1
    assert lines[0].startswith("error    shards         ftp://127.0.0.1:1/latents: cannot be reached: ")


def test_a_full_disk(doctor: Doctor, small_disk: Path, tmp_path: Path) -> None:
    shards, file = latents(tmp_path / "set"), tmp_path / "small.yaml"
    file.write_text(SMALL)
    status, lines = doctor("--config", file, f"shards={shards}", f"run={small_disk}/run")
    assert status == 1
    assert re.search(
        r"disk +0.0 GiB free in .*/disk, checkpoints of [\d.e-]+ GiB; 4.0 GiB are needed; free some or give",
        lines[0],
    )


def test_a_run_folder_that_cannot_be_written(doctor: Doctor, small_disk: Path) -> None:
    os.system(f"mount -o remount,ro {small_disk}")
    status, lines = doctor("--run", small_disk / "run")
    assert status == 1
    assert f"{small_disk}: cannot be written: Read-only file system" in lines[-1]


@pytest.mark.parametrize(("code", "says"), [("ENOSPC", "the disk is full"), ("EDQUOT", "the disk quota is used up")])
def test_a_disk_or_quota_without_room_for_a_byte(monkeypatch, tmp_path: Path, code: str, says: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    (finding,) = storage.clock_and_permission(tmp_path)
    assert (finding.level, finding.text) == ("error", f"{tmp_path}: cannot be written: {says}")
    assert finding.remedy == "remove files or give another run="


def test_a_file_server_with_a_wrong_clock(doctor: Doctor, monkeypatch) -> None:
    right = storage._now
    monkeypatch.setattr(storage, "_now", lambda: right() + 45)
    status, lines = doctor()
    assert status == 1
    assert "its file system's clock is 45.0 s behind; synchronise the clocks (NTP)" in lines[0]


def test_few_open_files(tmp_path: Path) -> None:
    doctor = [sys.executable, "-P", "-m", "mmldm_scale.cli", "doctor", "--quick", "--run", str(tmp_path / "run")]
    limited = ["prlimit", "--nofile=200:", *doctor]  # a process of its own: this one may have more files open
    result = subprocess.run(limited, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "")
    assert "error    open files     at most 200; ulimit -n 1024\n" in result.stdout


def test_little_shared_memory(small_disk: Path) -> None:
    (finding,) = host.shared_memory(8, 8, 4 << 20, small_disk)  # 8 × 33 × 4 MiB, and 8 × 64 MiB for NCCL
    assert (finding.level, finding.remedy) == (
        "error",
        "1,568 MiB are needed (in a container: --shm-size=2g), or training.workers=0",
    )
    assert [f.level for f in host.shared_memory(8, 0, 4 << 20, small_disk)] == ["warning"]
    assert [f.level for f in host.shared_memory(1, 2, 100 << 10, small_disk)] == ["ok"]


def test_the_folder_for_temporary_files(monkeypatch, tmp_path: Path) -> None:
    def finding(folder: Path) -> Finding:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)  # as at the start of a process
        (found,) = host.temporary_files()
        return found

    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert finding(Path("/tmp")) == Finding("ok", "temporary", "files and sockets in /tmp")
    text = f"files in {long}, which is too long for sockets: these are in /tmp"
    assert finding(long) == Finding("ok", "temporary", text)
    text = "TMPDIR=/nowhere cannot be written; /tmp is used"
    assert finding(Path("/nowhere")) == Finding("warning", "temporary", text, "set another TMPDIR")
    monkeypatch.setattr(processes, "SHORT_FOLDERS", ())
    assert (finding(long).level, finding(long).text) == (
        "error",
        f"TMPDIR={long}: is too long for Unix sockets; set a folder of at most 75 bytes",
    )


@pytest.mark.parametrize(
    ("local_rank", "visible", "says"),
    [
        (3, 4, ["ok", "4 × A800 (8.0), 80 of 80 GiB free"]),
        (3, 1, ["ok", "1 × A800 (8.0), 80 of 80 GiB free"]),  # SLURM shows each process its own
        (3, 2, ["error", "process 3 of the 4 on this node sees 2 GPUs; each needs one of its own"]),
        (0, 2, ["error", "process 0 of the 4 on this node sees 2 GPUs; each needs one of its own"]),
    ],
)
def test_the_gpus_that_a_process_sees(monkeypatch, local_rank: int, visible: int, says: list[str]) -> None:
    """torch's answers are made up; asked for a GPU that is not visible, it raises, as torch does."""

    def visible_only(answer: object) -> Callable[[int], object]:
        return lambda index: ([answer] * visible)[index]

    for name, answer in {
        "get_device_name": "A800",
        "get_device_capability": (8, 0),
        "mem_get_info": (80 << 30, 80 << 30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, visible_only(answer))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    (finding,) = devices.gpu(local_rank)
    assert [finding.level, finding.text[: len(says[1])]] == says


def test_more_workers_than_processors(doctor: Doctor, tmp_path: Path) -> None:
    shards, file = latents(tmp_path / "set"), tmp_path / "small.yaml"
    file.write_text(SMALL)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        status, lines = doctor("--config", file, f"shards={shards}", f"run={tmp_path}/run", "training.workers=3")
    finally:
        os.sched_setaffinity(0, cpus)
    assert status == 0  # slow, but it works
    (line,) = (line for line in lines if " processors " in line)
    assert "1 for 1 process(es) with 3 loader workers each; use --cpus-per-task=4 or training.workers=0" in line


def test_fewer_processors_than_processes(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    (finding,) = host.processors(8, 0)
    assert (finding.level, finding.text) == ("warning", "2 for 8 process(es) with 0 loader workers each")
    assert finding.remedy == "use --cpus-per-task=1, or at most 2 process(es) with training.workers=0"
    assert [f.level for f in host.processors(2, 0)] == ["ok"]


def test_a_kernel_with_wrong_results(doctor: Doctor, monkeypatch) -> None:
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", lambda q, k, v: right(q, k, v, scale=0.1))
    status, lines = doctor()
    assert status == 1
    assert re.search(
        r"attention +sdpa has an error of 0\.\d against float64 in torch.float32; 0.001 is allowed; use model",
        lines[0],
    )


def test_a_kernel_with_wrong_gradients(monkeypatch) -> None:
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        kernels.F, "scaled_dot_product_attention", lambda q, k, v: right(q, k.detach(), v) + 0 * k.sum()
    )
    findings = list(devices.attention(torch.device("cpu"), torch.bfloat16))
    assert [f.level for f in findings] == ["error", "ok"]


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_120"], False),  # a V100 with a build for CUDA 13
        ((7, 0), ["sm_50", "sm_70", "sm_90"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90", "sm_100"], True),
    ],
)
def test_kernels_run_on_gpus_that_they_are_built_for(capability, built, runs) -> None:
    assert devices.has_kernels(capability, built) == runs


def test_memory_errors_of_a_gpu_are_read_from_the_drivers_table() -> None:
    row = "{}, NVIDIA A800-SXM4-80GB, 550.54.15, 4, 81920, {}\n"
    findings = list(devices.health(row.format(0, 0) + row.format(1, 3) + row.format(2, "[N/A]")))
    assert [(f.level, f.text) for f in findings] == [
        ("error", "GPU 1 (NVIDIA A800-SXM4-80GB): 3 uncorrected memory errors"),
        ("ok", "550.54.15, 3 GPU(s)"),
    ]


def test_the_slurm_job() -> None:
    record = {"JobId": "7", "NumNodes": "2", "TimeLimit": "1-00:00:00", "Requeue": "1"}
    assert [f.level for f in host.check_job(record, gpus=8, tasks=8)] == ["ok"]
    task = record | {"ArrayJobId": "5", "ArrayTaskId": "2"}
    (finding,) = host.check_job(task, gpus=8, tasks=8, array_tasks=4)
    assert finding.text == "job 5_2, one of 4 of its array, 2 node(s), time limit 1-00:00:00"
    record |= {"TimeLimit": "00:05:00", "Requeue": "0"}
    assert list(host.check_job(record, gpus=8, tasks=1)) == [
        Finding("warning", "SLURM", "SLURM does not requeue it after a node failure", "#SBATCH --requeue"),
        Finding(
            "warning", "SLURM", "a time limit of 300 s is short for starting and saving", "--time of at least 600 s"
        ),
        Finding("warning", "SLURM", "1 task(s) for 8 GPUs on this node", "--ntasks-per-node=8"),
    ]
