"""A run's folder belongs to one process for as long as that lives; a requeued job waits for it to die."""

import errno
import fcntl
import os
import signal
import time

import pytest
from commands import long_run, read_log, toy
from sameness import assert_same_run

from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import hold, locked


def wait_for_lines(directory, count):
    while not (directory / "log.jsonl").exists() or len(read_log(directory)) < count:
        time.sleep(0.01)


@pytest.fixture
def stopped(forker, home, request):
    """A run that has its folder and is kept from ending: (its folder, its process)."""
    directory = home / "logged_files/toy" / request.node.name
    pid = forker.start("distill_lors", long_run(home, directory.name), home)
    wait_for_lines(directory, 3)
    os.kill(pid, signal.SIGSTOP)
    yield directory, pid
    for number in (signal.SIGKILL, signal.SIGCONT):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


def errors(folder):
    return [line for line in (folder / "output.txt").read_text().splitlines() if line.startswith("error: ")]


def test_whoever_else_would_write_into_it_ends_in_a_sentence(forker, home, stopped, tmp_path):
    directory, pid = stopped
    before = {file: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    anew = [*long_run(home, directory.name), "--fresh"]
    evaluate = [*toy(home), "--ckpt_path", f"{directory}/distilled_0.pt", "--num_eval", "1"]
    commands = [
        ("distill_lors", long_run(home, directory.name)),
        ("distill_lors", anew),
        ("distill_utils.evaluate", evaluate),
        ("distill_utils.coreset", ["random", *toy(home), "--num_queries", "2", "--name", directory.name]),
    ]
    for program, argv in commands:
        said = len(errors(home))
        assert forker.run(program, argv, home) == 2, program
        (sentence,) = errors(home)[said:]
        assert f"{directory} is in use by process {pid} on {os.uname().nodename}, since 20" in sentence
    said = len(errors(home))
    assert forker.together("distill_lors", anew, home) == [2, 2]
    assert all(f"in use by process {pid}" in sentence for sentence in errors(home)[said:])
    assert {file: file.read_bytes() for file in before} == before


def test_a_requeued_job_waits_for_its_predecessor(forker, home, stopped):
    directory, pid = stopped
    requeued = {"environment": {"SLURM_RESTART_COUNT": "1"}}
    successor = forker.start("distill_lors", long_run(home, directory.name), home, **requeued)
    time.sleep(1)
    assert len(read_log(directory)) == 3 or len(read_log(directory)) == 4  # nothing goes on beside it
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    assert forker.wait(pid) == 128 + signal.SIGTERM
    assert forker.wait(successor) == 0
    assert_same_run(home / "logged_files/toy/undisturbed", directory)


def test_a_finished_run_can_be_evaluated(forker, home):
    directory = home / "logged_files/toy/undisturbed"
    log = (directory / "log.jsonl").read_bytes(), (directory / "results.json").read_bytes()
    argv = [*toy(home), "--ckpt_path", directory, "--num_eval", "1", "--epoch_eval_train", "1"]
    assert forker.run("distill_utils.evaluate", argv, home) == 0
    for file, before in zip(("log.jsonl", "results.json"), log):
        (directory / file).write_bytes(before)


def test_a_lock_is_one_for_all_of_a_process_and_ends_with_the_last_who_keeps_it(tmp_path):
    first = hold(tmp_path / "lock")
    assert hold(tmp_path / ".." / tmp_path.name / "lock") is first

    def is_free_elsewhere():
        pid = os.fork()
        if not pid:
            try:
                hold(tmp_path / "lock")
            except UserError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    second = hold(tmp_path / "lock")
    del first
    assert not is_free_elsewhere()
    del second
    assert is_free_elsewhere()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EIO])
def test_a_file_system_without_locks_is_a_sentence(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=f"lock cannot be locked: {os.strerror(number)}"):
        hold(tmp_path / "lock")
    with pytest.raises(UserError, match="cannot be locked"), locked(tmp_path / "lock"):
        pass
