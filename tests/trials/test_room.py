"""Free memory is what a container leaves of a machine's, and on a GPU what torch keeps is free for the next tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from trials import room
from trials.room import free_memory, of_group


def group(path: Path, limit: str, used: int, inactive: int = 0, names: tuple[str, str] = ("max", "current")) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"memory.{names[0]}").write_text(f"{limit}\n")
    (path / f"memory.{names[1]}").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def test_the_tightest_group_on_the_way_up_says_what_is_left(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert of_group(tmp_path / "sys", own) == math.inf
    assert of_group(tmp_path / "sys", tmp_path / "nowhere") == math.inf
    group(tmp_path / "sys", "max", 900)
    group(tmp_path / "sys/a/b", "max", 100)
    assert of_group(tmp_path / "sys", own) == math.inf
    group(tmp_path / "sys/a", "1000", 700, inactive=50)
    assert of_group(tmp_path / "sys", own) == 350
    group(tmp_path / "sys/a/b", "200", 190)
    assert of_group(tmp_path / "sys", own) == 10
    group(tmp_path / "sys/a/b", "200", 900)
    assert of_group(tmp_path / "sys", own) == 0


def test_in_a_container_the_root_alone_is_seen_and_older_kernels_have_other_names(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/docker/1234\n3:cpuset:/\n0::/\n")
    group(tmp_path / "sys/memory", "1000", 400, names=("limit_in_bytes", "usage_in_bytes"))
    assert of_group(tmp_path / "sys", own) == 600
    own.write_text("0::/docker/1234\n")
    group(tmp_path / "sys", "500", 100)
    assert of_group(tmp_path / "sys", own) == 400


def test_a_cpu_has_what_both_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 0 < free_memory(cpu) < 1e16
    monkeypatch.setattr(room, "of_group", lambda: 123.0)
    assert free_memory(cpu) == 123.0


def test_what_torch_keeps_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000) if device == second else (9, 9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory(second) == 1300
