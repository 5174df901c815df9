"""Worker processes of Optuna that share a study through a journal file, each training in plain torch.

The fixed points are enqueued, so the sampler hands them out instead of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.rivals import Inputs, Trained

NAME = "job"


def point_of(inputs: Inputs, number: int) -> dict[str, Any]:
    """A trial's point under the names that `suggest` uses."""
    w0, w1 = (int(w) for w in inputs["widths"][number])
    return {"w0": w0, "w1": w1, "lr": float(inputs["lr"][number]), "momentum": float(inputs["momentum"][number])}


def _work(path: str, journal: str, trials: int) -> None:
    import torch

    from benchmarks.rivals.torch_plain import Data, train

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    inputs = Inputs.load(path)
    data = Data.of(inputs)

    def objective(trial: optuna.Trial) -> float:
        started = time.time()
        widths = (trial.suggest_int("w0", 4, 128, log=True), trial.suggest_int("w1", 4, 128, log=True))
        lr, momentum = trial.suggest_float("lr", 1e-3, 1.0, log=True), trial.suggest_float("momentum", 0.0, 0.95)
        number = inputs.number_of(widths, lr, momentum)
        error, _ = train(data, number)
        facts = {"number": number, "started": started, "ended": time.time(), "worker": str(os.getpid())}
        trial.set_user_attr("facts", facts)
        return error

    study = optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(journal)))
    study.optimize(objective, n_trials=trials)


def replay(path: Path, count: int, workers: int) -> list[Trained]:
    """The first `count` points in `workers` processes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    inputs = Inputs.load(path)
    with tempfile.TemporaryDirectory(prefix="optuna-") as directory:
        journal = str(Path(directory) / "journal.log")
        study = optuna.create_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(journal)))
        for number in range(count):
            study.enqueue_trial(point_of(inputs, number))
        shares = [len(range(worker, count, workers)) for worker in range(workers)]
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_work, args=(str(path), journal, share)) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        done = [(t.user_attrs["facts"], t.value) for t in study.trials if "facts" in t.user_attrs]
    return [Trained(**facts, val_error=float("nan") if value is None else value) for facts, value in done]
