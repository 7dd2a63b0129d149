"""Signals: the first one is polled, the second ends the process at once."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import pytest

from idode_gin.processes import failures, joining, preemption
from idode_gin.processes.preemption import StopRequest


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [*preemption.SIGNALS, *preemption.MORE_SIGNALS])
def test_a_signal_is_seen_by_polling(number, monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())  # capfd may lose what a thread writes
    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            wait_until(lambda: stop.requested)
            assert stop.reason == number.name
            wait_until(lambda: number.name in said.getvalue())
    finally:
        signal.signal(number, before)


def test_handlers_come_back(tmp_path):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] != before
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: inner.requested)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def one_of_two(monkeypatch):
    """One of two processes: records what it asks of the other, which answers as set here."""
    said = types.SimpleNamespace(asked=0, polls=0, agreed_from=10**6, failures=[])

    def ask():
        said.asked += 1

    def poll():
        said.polls += 1
        return said.polls >= said.agreed_from

    monkeypatch.setattr(joining, "count", lambda: 2)
    monkeypatch.setattr(failures, "ask_to_stop", ask)
    monkeypatch.setattr(failures, "poll", poll)
    monkeypatch.setattr(failures, "fail", lambda *each: said.failures.append(each))
    return said


def test_several_processes_poll_alike(one_of_two):
    """Every poll counts until all stop, through all loops of a process."""
    one_of_two.agreed_from = 4
    with StopRequest() as stop:
        assert [stop.requested, stop.requested] == [False, False]
    with StopRequest() as stop:
        assert [stop.requested, stop.requested, stop.requested] == [False, True, True]
        assert stop.requested
        assert stop.reason == "preemption"
    assert one_of_two.polls == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_are_asked_where_one_is(number, one_of_two):
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        wait_until(lambda: one_of_two.asked == 1)
        assert stop.reason == number.name
        assert not stop.requested  # before they have agreed


def test_several_processes_are_asked_for_what_was_swallowed(one_of_two):
    with preemption.stoppable():
        with contextlib.suppress(preemption.StoppedOutsideLoop):
            signal.raise_signal(signal.SIGTERM)
        with StopRequest():
            assert one_of_two.asked == 1


@pytest.fixture
def left(monkeypatch):
    """Set once the process would have ended."""
    event = threading.Event()
    monkeypatch.setattr(preemption, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", lambda _: event.set())
    return event


def test_several_processes_that_save_together_are_not_left_in_mid_batch(one_of_two, left):
    with StopRequest() as stop:
        with stop.with_last_words(lambda _: pytest.fail("said them")):
            os.kill(os.getpid(), signal.SIGTERM)
            assert not left.wait(0.4)
        with stop.with_last_words(lambda name: f"by {name}", saves=False):
            assert left.wait(10)
    assert one_of_two.failures[0] == (75, "by SIGTERM")


def test_several_processes_say_what_each_can_say_alone(one_of_two, left):
    with StopRequest(preemption.RESULTS, lambda name: f"kept, {name}"):
        os.kill(os.getpid(), signal.SIGTERM)
        assert left.wait(10)
    assert one_of_two.failures[0] == (75, "kept, SIGTERM")


def test_what_there_is_is_kept_for_another_process_that_leaves(monkeypatch):
    acts, kept = [], []
    monkeypatch.setattr(failures, "before_leaving", acts.append)
    with StopRequest(preemption.RESULTS, lambda _: kept.append(1) or "kept"):
        acts[0]()
    assert kept == [1]
    acts[0]()  # too late: the loop was left
    assert (kept, acts[1:]) == ([1], [None])


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


BUSY = textwrap.dedent(
    """
    import re, sys
    from idode_gin.processes.preemption import StopRequest
    with StopRequest():
        print("ready", flush=True)
        # One call of C code that holds no lock of ours and does not return for minutes.
        import time; time.sleep({seconds})
    print("left", flush=True)
    """
)


def test_a_second_signal_ends_the_process_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(seconds=300)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert "SIGTERM: stopping" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 128 + signal.SIGINT
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_one_signal_leaves_the_context_to_finish():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(seconds=2)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert output == "left\n"
    assert process.returncode == 0


def test_what_follows_a_loop_that_ended_well_stops_too():
    """The request came after the last poll: nothing has answered it."""
    code = textwrap.dedent(
        """
        import signal, time
        from idode_gin.processes import preemption
        preemption.GRACE = 0.3
        with preemption.stoppable():
            with preemption.StopRequest() as stop:
                signal.raise_signal(signal.SIGTERM)
            print("left", flush=True)
            time.sleep(30)
        """
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (75, "left\n")
    assert "stopped: Stopped by SIGTERM" in found.stderr


def test_a_signal_that_the_kernel_repeats_does_not_prolong_the_wait():
    code = textwrap.dedent(
        """
        import signal, threading, time
        from idode_gin.processes import preemption
        preemption.GRACE = 0.5
        def repeat(thread=threading.main_thread().ident):
            while not time.sleep(0.1):
                signal.pthread_kill(thread, signal.SIGXCPU)
        with preemption.StopRequest(preemption.RESULTS, lambda name: "last words"):
            threading.Thread(target=repeat, daemon=True).start()
            began = time.monotonic()
            while time.monotonic() < began + 30:
                time.sleep(0.1)
        """
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, "stopped: last words" in found.stderr) == (75, True), found.stderr


def test_a_limit_of_cpu_time_asks_once_though_the_kernel_repeats_it():
    """Its signal comes again for every second that the process computes beyond the limit."""
    code = BUSY.format(seconds=0) + textwrap.dedent(
        """
        import resource, time
        with StopRequest() as stop:
            soft = int(time.process_time()) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
            while time.process_time() < soft + 2.5:
                pass
            print(stop.requested, flush=True)
        """
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout.split()) == (0, ["ready", "left", "True"])
    assert found.stderr.count("SIGXCPU: stopping") == 1


@pytest.mark.parametrize("notice", [preemption.TRAINING, preemption.RESULTS])
def test_a_signal_says_what_it_will_do(notice, monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    with StopRequest(notice) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
        wait_until(lambda: f"SIGTERM: {notice}" in said.getvalue())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_outside_a_loop_a_signal_is_raised_and_inside_it_is_polled(number):
    with preemption.stoppable(), StopRequest() as stop:
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.requested)
    with preemption.stoppable():
        with StopRequest():
            pass
        with pytest.raises(preemption.StoppedOutsideLoop, match=number.name):
            signal.raise_signal(number)


def test_a_request_that_a_loop_did_not_answer_stops_the_next_loop():
    with preemption.stoppable():
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: stop.requested)
        with StopRequest() as stop:
            assert stop.requested


def test_a_request_that_was_swallowed_stops_the_next_loop():
    with preemption.stoppable():
        with contextlib.suppress(preemption.StoppedOutsideLoop):
            signal.raise_signal(signal.SIGTERM)
        with StopRequest() as stop:
            assert stop.requested
            assert stop.reason == "SIGTERM"
    with StopRequest() as stop:
        assert not stop.requested


def test_outside_a_loop_a_second_signal_ends_the_process_at_once():
    program = textwrap.dedent(
        """
        from idode_gin.processes import preemption
        import hashlib
        with preemption.stoppable():
            print("ready", flush=True)
            # C code that does not return for minutes: handlers in Python wait for that.
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # for the call below it to begin
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert "SIGTERM: stopping. Again" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_outside_a_loop_what_does_not_return_is_left():
    program = textwrap.dedent(
        """
        from idode_gin.processes import preemption
        import hashlib
        preemption.GRACE = 0.2
        with preemption.stoppable():
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # for the call below it to begin
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 75
        assert "stopped: Stopped by SIGTERM while starting or finishing." in errors
    finally:
        process.kill()
        process.communicate()


def test_outside_a_loop_what_cleans_up_has_time_for_it(left):
    with preemption.stoppable():
        with pytest.raises(preemption.StoppedOutsideLoop):
            signal.raise_signal(signal.SIGTERM)
        assert not left.wait(0.5)


class Asking:
    """Asks this process to stop while it is deleted, where Python raises nothing."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_outside_a_loop_a_request_that_python_swallowed_is_not_lost(left, capsys):
    hook = sys.unraisablehook
    with preemption.stoppable():
        asking = Asking()
        del asking
        assert left.wait(10)
    assert sys.unraisablehook is hook
    assert "ignored" not in capsys.readouterr().err


@pytest.mark.parametrize("contexts", [1, 2])
def test_a_loop_answers_what_python_swallowed(left, contexts):
    with contextlib.ExitStack() as stack:
        stack.enter_context(preemption.stoppable())
        asking = Asking()
        del asking
        for _ in range(contexts - 1):  # as the program's own, within that of its start
            stack.enter_context(preemption.stoppable())
        with StopRequest() as stop:
            assert stop.requested
            assert not left.wait(0.4)


def test_while_starting_there_is_no_exception_to_be_swallowed():
    program = textwrap.dedent(
        """
        import signal
        from idode_gin.processes import preemption

        class Asking:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)

        with preemption.starting(), preemption.stoppable():
            print("before")
            {}
            asking = Asking()
            del asking
            print("after")
            raise SystemExit(0)
        """
    )
    for started, code, output in (
        ("pass", 75, "before\n"),
        ("preemption.started()", 0, "before\nafter\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program.format(started)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, output)
        assert ("stopped: Stopped by SIGTERM while starting" in done.stderr) == (code == 75)


BLOCKED = textwrap.dedent(
    """
    import contextlib, hashlib, time
    from idode_gin.processes import preemption

    def last_words(name):
        {words}

    def until_asked(stop):
        while not stop.requested:
            time.sleep(0.01)
        time.sleep(4 * preemption.GRACE)

    preemption.GRACE = 0.2
    with preemption.StopRequest(preemption.RESULTS, {whole}) as stop:
        print("ready", flush=True)
        {before}
        with {part}:
            # C code that does not return for minutes, as a compilation is.
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """
)
WHOLE = {"whole": "last_words", "before": "pass", "part": "contextlib.nullcontext()"}
PART = {"whole": "None", "before": "pass", "part": "stop.with_last_words(last_words)"}
LATE = {**PART, "before": "until_asked(stop)"}


@pytest.mark.parametrize(
    ("context", "words", "code"),
    [
        (WHOLE, "return name", 75),
        (WHOLE, "raise OSError('full')", 2),
        (WHOLE, "raise RuntimeError('full')", 1),
        (WHOLE, "raise preemption.checks.NonFiniteError('full')", 3),
        (PART, "return name", 75),
        (LATE, "return name", 75),
    ],
)
def test_a_loop_that_does_not_come_to_its_next_poll_says_its_last_words(context, words, code):
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED.format(words=words, **context)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == code
        label = {75: "stopped: SIGTERM", 1: "error: RuntimeError: full"}.get(code, "error: full")
        assert errors.endswith(f"\n{label}\n")
        assert ("Traceback" in errors) == (code == 1)  # a bug
    finally:
        process.kill()
        process.communicate()


def test_no_last_words_where_the_loop_was_left_in_time(monkeypatch):
    said, left = [], []
    monkeypatch.setattr(preemption, "GRACE", 0.1)
    monkeypatch.setattr(preemption.os, "_exit", left.append)
    with StopRequest(preemption.RESULTS, lambda _: said.append("whole") or "") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
    with StopRequest(preemption.RESULTS) as stop:
        with stop.with_last_words(lambda _: said.append("part") or ""):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.requested)
        time.sleep(0.3)
    time.sleep(0.3)  # for a thread that has not ended
    assert (said, left) == ([], [])
