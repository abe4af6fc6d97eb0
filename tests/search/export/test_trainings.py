"""Trainings for an export go to their end whatever happens to a worker; workers here play a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import EPOCHS, Script, ScriptedPool, failed, result

from search.errors import FailureKind, HeldError, Interrupted, TrainingFailed
from search.export.retrain import raise_if_stopped
from search.export.trainings import Outcome, Training, TrainingQueue
from search.paths import Runs
from search.workers.messages import Assign, Epoch, FromWorker, Left
from search.workers.pool import Exit
from studies import Faults
from studies.final import Rerank
from trainer.config import DataConfig, TrainConfig
from trainer.errors import DiskError


def trains(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
    for number in range(1, EPOCHS + 1):
        yield epoch(assignment, number)


def epoch(assignment: Assign, number: int, *, seconds: float = 1.0) -> Epoch:
    lr = assignment.config["lr"]
    assert isinstance(lr, float)
    return Epoch(trial=assignment.trial, result=result(number, lr + number / 10, seconds=seconds), memory_bytes=1 << 30)


def trainings(number: int, **values: Any) -> list[Training]:
    return [
        Training(
            trial=0,
            label=f"member {index}",
            config=TrainConfig(epochs=EPOCHS, lr=(index + 1) / 100),
            folder=Path(f"{index}"),
            **values,
        )
        for index in range(number)
    ]


def trainer_on(pool: ScriptedPool, notes: list[str], faults: Faults | None = None, **options: Any) -> TrainingQueue:
    return TrainingQueue(
        pool,
        DataConfig(source="digits", folds=5),
        Path("cache"),
        faults or Faults(),
        say=lambda line, *_: notes.append(line),
        **options,
    )


def all_of(trainer: TrainingQueue, wanted: list[Training]) -> list[Outcome]:
    return list(trainer.train("retraining", wanted, progress=lambda stage, done, total: None))


def run(
    script: Script, wanted: list[Training], workers: int = 1, faults: Faults | None = None, **options: Any
) -> tuple[list[Outcome], ScriptedPool, list[str]]:
    pool, notes = ScriptedPool(script, workers), list[str]()
    return all_of(trainer_on(pool, notes, faults, **options), wanted), pool, notes


def test_every_training_ends_with_all_of_its_epochs() -> None:
    outcomes, pool, notes = run(trains, trainings(5), workers=2)
    assert sorted(outcome.training.label for outcome in outcomes) == [f"member {index}" for index in range(5)]
    assert all(len(outcome.results) == EPOCHS for outcome in outcomes)
    assert set(pool.started) == {0, 1}
    assert len(notes) == 5
    assert "4 of 5 trainings done, about 3 s left" in notes[3]
    assert "5 of 5 trainings done" in notes[4]


def test_each_result_says_of_which_pictures_it_is() -> None:
    (folded, seen, plain) = trainings(3)
    wanted = [replace(folded, folds=5), replace(seen, fit_on="train+val"), plain]
    lines = "\n".join(one for training in wanted for one in run(trains, [training])[2])
    assert "% in 5-fold cross-validation; 1 of 1 training done\n" in lines
    assert "% on validation (trained on them); 1 of 1 training done\n" in lines
    assert lines.endswith("% on validation; 1 of 1 training done")


def test_no_more_workers_are_started_than_there_are_trainings() -> None:
    _, pool, _ = run(trains, trainings(1), workers=4)
    assert pool.started == [0]


def test_workers_stay_for_the_next_stage_and_more_join_where_it_has_more_to_do() -> None:
    pool = ScriptedPool(trains, 3)
    trainer = trainer_on(pool, [])
    assert [len(all_of(trainer, trainings(number))) for number in (1, 1, 2)] == [1, 1, 2]
    assert pool.started == [0, 1]


def test_a_worker_hears_what_the_training_is() -> None:
    before, other = trainings(2)
    wanted = replace(other, fit_on="val", start=before, rerank=Rerank(layer="conv1"))
    _, pool, _ = run(trains, [wanted])
    (assignment,) = pool.assigned
    assert assignment.config == wanted.config.model_dump(mode="json")
    assert (assignment.fit_on, assignment.start) == ("val", "0/checkpoint")
    assert assignment.rerank == Rerank(layer="conv1")
    assert assignment.data.folds == 0, "a final model is one model, though the study has folds"
    assert pool.answers == [True, True, False]


def test_a_dead_workers_training_goes_on_with_another_process() -> None:
    def dies_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if times == 0:
            yield epoch(assignment, 1)
            yield Exit(-9, "")
        yield from trains(assignment, times)

    outcomes, pool, notes = run(dies_once, trainings(1))
    assert len(outcomes[0].results) == EPOCHS
    assert pool.started == [0, 0]
    assert notes[0] == "worker cpu:0 ended with signal 9; member 0 goes on from its last epoch"


def test_a_training_that_never_gets_further_is_given_up() -> None:
    def dies(_assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield Exit(3, "ImportError: no module named torch")

    with pytest.raises(TrainingFailed, match=r"member 0 cannot be trained: the worker ended with exit code 3\nImp"):
        run(dies, trainings(1))


def test_a_training_that_gets_further_each_time_is_never_given_up() -> None:
    def one_epoch_a_life(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        yield epoch(assignment, times + 1)
        yield Left(trial=assignment.trial) if times + 1 == EPOCHS else Exit(-9, "")

    assert Faults().retries < EPOCHS
    outcomes, _, _ = run(one_epoch_a_life, trainings(1))
    assert [result.epoch for result in outcomes[0].results] == [1, 2, 3]


def test_a_training_that_diverges_says_so_and_the_others_go_on() -> None:
    def first_diverges(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 0:
            error = "epoch 1 has a training loss of nan"
            yield failed(0, "diverged", error)
        yield from trains(assignment, times)

    outcomes, _, notes = run(first_diverges, trainings(2))
    assert [outcome.diverged for outcome in outcomes] == ["epoch 1 has a training loss of nan", ""]
    assert "member 0: diverged (epoch 1 has a training loss of nan); 1 of 2" in notes[0]


@pytest.mark.parametrize(
    ("kind", "error", "raised", "sentence"),
    [
        ("disk", "no room for a checkpoint", DiskError, "^no room for a checkpoint$"),
        ("user", "no such model", TrainingFailed, "member 0 cannot be trained: no such model"),
    ],
)
def test_what_no_other_attempt_can_cure_ends_it(
    kind: FailureKind, error: str, raised: type[Exception], sentence: str
) -> None:
    def fails(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, kind, error)

    with pytest.raises(raised, match=sentence):
        run(fails, trainings(1))


def test_a_crash_is_tried_again_and_then_given_up() -> None:
    def crashes(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, "crash", "RuntimeError: CUDA error")

    with pytest.raises(TrainingFailed, match="member 0 cannot be trained: RuntimeError: CUDA error"):
        run(crashes, trainings(1))


def test_epochs_that_a_resumed_training_repeats_are_no_new_ones() -> None:
    def dies_after_its_first_epoch(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield epoch(assignment, 1)
        yield Exit(-9, "")

    trainer = trainer_on(pool := ScriptedPool(dies_after_its_first_epoch), [], Faults(retries=2))
    with pytest.raises(TrainingFailed, match="ended with signal 9"):
        all_of(trainer, trainings(1))
    assert len(pool.assigned) == 3, "two retries"


def test_the_training_of_a_lost_worker_and_what_begins_with_it_have_files_of_its_own(tmp_path: Path) -> None:
    """The worker may still train on a node that nobody reaches, and write an older checkpoint."""

    def is_lost_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        checkpoint = Path(assignment.checkpoint)
        if times == 0:
            checkpoint.parent.mkdir()
            checkpoint.write_text("after epoch 1")
            (checkpoint.parent / "ranks.json").write_text("ranks")
            yield epoch(assignment, 1)
            yield Exit(0, "", lost="lost")
        assert [(checkpoint.parent / name).read_text() for name in ("checkpoint", "ranks.json")] == [
            "after epoch 1",
            "ranks",
        ]
        yield from trains(assignment, times)

    first = replace(trainings(1)[0], folder=tmp_path / "first")
    run(is_lost_once, [first])
    assert first.checkpoint == tmp_path / "first" / "1" / "checkpoint"
    _, pool, _ = run(trains, [replace(first, folder=tmp_path / "last", start=first)])
    assert [one.start for one in pool.assigned] == [str(first.checkpoint)]


def test_a_worker_that_cannot_start_ends_it() -> None:
    class NeverReady(ScriptedPool):
        def start(self, worker: int) -> None:
            super().start(worker)
            self._plays[worker] = iter([Exit(1, "ImportError: torch")])

    pool = NeverReady(trains)
    with pytest.raises(TrainingFailed, match=r"worker cpu:0 cannot start \(ended with exit code 1\):\nImportError"):
        all_of(trainer_on(pool, []), trainings(1))


def test_a_device_that_drops_out_is_put_aside_and_the_others_do_it_all() -> None:
    class DropsOut(ScriptedPool):
        def start(self, worker: int) -> None:
            super().start(worker)
            if worker == 0 and self.started.count(0) > 1:
                self._plays[0] = iter([Exit(1, "ConfigError: no GPU")])

    def breaks_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            error = "AcceleratorError: CUDA error: it fell off the bus"
            yield failed(assignment.trial, "device", error)
        yield from trains(assignment, times)

    for number in (1, 9):  # the other device is not needed at first, or has enough to do
        pool, notes = DropsOut(breaks_on_the_first, 2), list[str]()
        assert len(all_of(trainer_on(pool, notes), trainings(number))) == number
        assert "cpu:0 is put aside: no new process of it can start, see its log" in notes


def test_a_training_without_memory_goes_on_in_parts() -> None:
    def needs_two_parts(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.micro_batches < 2:
            yield failed(assignment.trial, "memory", "MemoryError: 1 GB")
        else:
            yield from trains(assignment, times)

    outcomes, pool, notes = run(needs_two_parts, trainings(1))
    assert len(outcomes[0].results) == EPOCHS
    assert [assignment.micro_batches for assignment in pool.assigned] == [1, 2]
    assert pool.started == [0, 0], "a new process has a clean memory"
    assert "member 0 ran out of memory; it goes on in a new process with 2 micro-batches per step" in notes[0]


def test_a_training_without_memory_first_gives_up_the_pictures_in_it() -> None:
    def without_pictures(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if not assignment.streamed:
            yield failed(assignment.trial, "memory", "OutOfMemoryError: CUDA out of memory", with_pictures=True)
        else:
            yield from trains(assignment, times)

    _, pool, notes = run(without_pictures, trainings(1))
    assert [(assignment.streamed, assignment.micro_batches) for assignment in pool.assigned] == [(False, 1), (True, 1)]
    assert "member 0 ran out of memory; it goes on in a new process, with its pictures on the host" in notes[0]


def test_a_worker_that_the_system_killed_for_memory_has_its_training_go_on_in_parts() -> None:
    def killed_in_one_part(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if assignment.micro_batches == 1:
            yield Exit(-9, "", out_of_memory=True)
        yield from trains(assignment, times)

    outcomes, pool, notes = run(killed_in_one_part, trainings(1))
    assert len(outcomes[0].results) == EPOCHS
    assert [assignment.micro_batches for assignment in pool.assigned] == [1, 2]
    assert "member 0 ran out of memory; it goes on in a new process with 2 micro-batches per step" in notes[0]


def test_a_training_too_large_for_any_part_ends_it() -> None:
    def too_large(_assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        yield Exit(-9, "", out_of_memory=True)

    with pytest.raises(TrainingFailed, match=r"member 0 needs more memory than there is: the worker ran out of memory"):
        run(too_large, trainings(1))


def test_a_device_on_which_nothing_works_is_put_aside_and_the_others_do_it_all() -> None:
    def breaks_on_the_first(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        if pool.worker == 0:
            error = "AcceleratorError: CUDA error: unspecified launch failure"
            yield failed(assignment.trial, "device", error)
        yield from trains(assignment, times)

    for number in (1, 5):  # the other device is not needed at first, or has enough to do
        pool, notes = ScriptedPool(breaks_on_the_first, 2), list[str]()
        outcomes = all_of(trainer_on(pool, notes), trainings(number))
        assert [len(outcome.results) for outcome in outcomes] == [EPOCHS] * number
        assert any(note.startswith("cpu:0 is put aside after 3 CUDA errors") for note in notes)


def test_a_training_that_no_device_can_do_ends_it() -> None:
    def breaks(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit | None]:
        error = "AcceleratorError: CUDA error: an illegal memory access"
        yield failed(assignment.trial, "device", error)

    with pytest.raises(TrainingFailed, match=r"no device is left \(3 CUDA errors, the last: AcceleratorError: CUDA"):
        run(breaks, trainings(1))
    with pytest.raises(TrainingFailed, match="member 0 cannot be trained: AcceleratorError: CUDA error: an illegal"):
        run(breaks, trainings(1), workers=3)


def test_a_worker_that_makes_no_progress_is_ended_and_its_training_goes_on() -> None:
    def hangs_once(assignment: Assign, times: int) -> Iterator[FromWorker | Exit | None]:
        while times == 0:
            yield None
        yield from trains(assignment, times)

    outcomes, pool, notes = run(hangs_once, trainings(1), faults=Faults(first_epoch_seconds=0.1, hang_seconds=0.1))
    assert len(outcomes[0].results) == EPOCHS
    assert pool.started == [0, 0]
    assert notes[0] == "worker cpu:0 made no progress for 0 s and was ended; member 0 goes on from its last epoch"


def test_whoever_finds_in_a_turn_that_the_study_is_anothers_ends_it() -> None:
    turns = []

    def taken_over() -> None:
        turns.append(None)
        if len(turns) == 3:
            raise HeldError("study", "process 7")

    with pytest.raises(HeldError, match="in use by process 7"):
        run(trains, trainings(1), each_turn=taken_over)


def test_a_stop_request_ends_it_with_what_is_done_kept(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    request = runs.stop_request("small")
    request.parent.mkdir(parents=True)

    def asked_meanwhile(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        request.touch()
        yield from trains(assignment, times)

    with pytest.raises(Interrupted, match="export stopped; nothing is lost, the same command goes on"):
        run(asked_meanwhile, trainings(3), each_turn=lambda: raise_if_stopped(runs, "small"))


def test_a_training_that_fails_costs_no_other_its_time_and_is_named_with_its_log_at_the_end() -> None:
    def first_cannot(assignment: Assign, times: int) -> Iterator[FromWorker | Exit]:
        if assignment.trial == 0:
            yield failed(0, "crash", "ValueError: no such layer")
        yield from trains(assignment, times)

    pool, notes = ScriptedPool(first_cannot, log="Traceback\nValueError: no such layer"), list[str]()
    with pytest.raises(TrainingFailed, match=r"member 0 cannot be trained: ValueError: no such layer\nTraceback\n"):
        all_of(trainer_on(pool, notes), trainings(3))
    assert [note.partition(": ")[2][:8] for note in notes if note.startswith("retraining")] == ["member 1", "member 2"]


def test_the_same_error_in_two_trainings_in_a_row_ends_an_export_at_once() -> None:
    def fails(assignment: Assign, _times: int) -> Iterator[FromWorker | Exit]:
        yield failed(assignment.trial, "crash", f"ValueError: {assignment.checkpoint} has 3 layers")

    pool = ScriptedPool(fails)
    with pytest.raises(TrainingFailed, match="member 1 cannot be trained"):
        all_of(trainer_on(pool, []), trainings(5))
    assert set(pool.trials) == {0, 1}
