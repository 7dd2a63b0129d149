"""The end of a connection tells of the end of a process, unless it said goodbye."""

import socket
import subprocess
import sys
import textwrap
import time

import pytest

from idode_gin.processes.lifelines import Lifelines

GUEST = textwrap.dedent(
    """
    import sys, time
    from idode_gin.processes.lifelines import Lifelines
    lines = Lifelines()
    lines.connect("localhost", int(sys.argv[1]), "secret", int(sys.argv[2]))
    print("there", flush=True)
    {what}
    """
)


@pytest.fixture
def host():
    lines = Lifelines()
    lines.port = lines.listen("secret")
    yield lines
    lines.close()


def guest(port: int, index: int, what: str = "time.sleep(300)") -> subprocess.Popen:
    command = [sys.executable, "-c", GUEST.format(what=what), str(port), str(index)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    return process


def test_a_killed_process_is_missed_at_once(host):
    guests = [guest(host.port, index) for index in (1, 2, 3)]
    try:
        assert host.wait(0.3) is None
        for index in (2, 1):
            guests[index - 1].kill()
            began = time.monotonic()
            assert host.wait(20) == index
            assert time.monotonic() - began < 2
        assert host.wait(0.1) is None
    finally:
        for each in guests:
            each.kill()
            each.communicate()


@pytest.mark.parametrize(
    ("what", "lost"), [("lines.close()", None), ("sys.exit(3)", 1), ("lines.wait(0.1)", 1)]
)
def test_who_says_goodbye_is_not_missed(host, what, lost):
    process = guest(host.port, 1, what)
    assert host.wait(20 if lost else 0.5) == lost
    process.communicate(timeout=20)


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_process_0_is_missed_as_well(says_goodbye):
    host, line = Lifelines(), Lifelines()
    line.connect("localhost", host.listen("secret"), "secret", 4)
    assert host.wait(0.1) is None
    assert line.wait(0.1) is None
    if says_goodbye:
        host.close()
    else:
        for key in list(host._selector.get_map().values()):
            key.fileobj.close()
    assert line.wait(0.5) == (None if says_goodbye else 0)
    line.close()


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\n", b"idode_gin lifeline guess 1\n", b"\xff" * 300]
)
def test_strangers_are_nobody(host, said):
    with socket.create_connection(("localhost", host.port)) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert host.wait(0.2) is None
    assert host.wait(0.2) is None


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        Lifelines().connect("localhost", port, "secret", 1)
