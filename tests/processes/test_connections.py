"""The end of a connection shows the end of a process; what one publishes, all receive."""

import socket
import subprocess
import sys
import textwrap
import time

import pytest

from idode_gin.processes.connections import Connections

PROCESS = textwrap.dedent(
    """
    import socket, sys, time
    from idode_gin.processes.connections import Connections
    end = socket.create_connection(("localhost", int(sys.argv[1])))
    connections = Connections(int(sys.argv[2]), 4, {0: end})
    connections.publish("there")
    time.sleep(300)
    """
)


@pytest.fixture
def hub():
    """Connections of process 0 to three processes, which wait to be killed, and these."""
    processes, ends = [], {}
    with socket.create_server(("localhost", 0)) as server:
        for index in (1, 2, 3):
            port = str(server.getsockname()[1])
            command = [sys.executable, "-c", PROCESS, port, str(index)]
            processes.append(subprocess.Popen(command))
            ends[index], _ = server.accept()
    connections = Connections(0, 4, ends)
    yield connections, processes
    connections.close()
    for each in processes:
        each.kill()
        each.wait()


def ended(connections, seconds=20.0):
    """Indices of processes whose connections end until one does."""
    deadline, found = time.monotonic() + seconds, []
    while not found and time.monotonic() < deadline:
        found = connections.wait(deadline - time.monotonic())
    return found


def test_a_killed_process_is_missed_and_named(hub):
    connections, processes = hub
    assert ended(connections, 0.3) == []
    for index in (2, 1):
        processes[index - 1].kill()
        assert ended(connections) == [index]
    assert ended(connections, 0.1) == []
    assert connections.is_open


@pytest.fixture
def pair():
    """Process 0 and processes 1 and 2."""
    one, two = socket.socketpair(), socket.socketpair()
    found = [
        Connections(0, 3, {1: one[0], 2: two[0]}),
        Connections(1, 3, {0: one[1]}),
        Connections(2, 3, {0: two[1]}),
    ]
    yield found
    for each in found:
        each.close()


def test_what_one_publishes_all_receive_and_its_first_value_stays(pair):
    zero, one, two = pair
    one.publish("a", {"text": "line\nand é" * 2000})
    one.publish("a", 2)
    while "a" not in two.found:
        zero.wait(0.01)
        two.wait(0.01)
    two.publish("a", 3)
    zero.publish("b")
    for each in (one, two):
        while "b" not in each.found:
            each.wait(0.01)
    assert zero.found == one.found == two.found
    assert list(zero.found) == ["a", "b"]


def test_process_0_is_missed_as_well(pair):
    zero, one, two = pair
    zero.publish("last words")
    zero.close()
    for each in (one, two):
        assert ended(each) == [0]
        assert "last words" in each.found
        assert not each.is_open
        each.publish("not received")
