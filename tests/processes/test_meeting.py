"""All processes of a run meet, or all report why not."""

import contextlib
import socket
import threading
import time

import pytest

from idode_gin.processes import meeting


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def all_meet(*members: tuple[int, int], timeout: float = 20, late: float = 0) -> dict[int, str]:
    """The error of each process, given as (count, index); "" where they met.

    The last one comes `late` seconds after the others.
    """
    port, errors = free_port(), {}

    def take_part(number: int, count: int, index: int) -> None:
        try:
            meeting.meet(f"localhost:{port}", count, index, timeout)
            errors[number] = ""
        except ValueError as error:
            errors[number] = str(error)

    threads = [
        threading.Thread(target=take_part, args=(number, *each))
        for number, each in enumerate(members)
    ]
    for each in threads:
        if each is threads[-1]:
            time.sleep(late)
        each.start()
    for each in threads:
        each.join()
    return errors


def test_all_are_there() -> None:
    assert set(all_meet((3, 2), (3, 0), (3, 1)).values()) == {""}
    assert all_meet((1, 0)) == {0: ""}


def test_all_report_what_is_wrong() -> None:
    errors = all_meet((3, 0), (3, 1), (3, 1))
    assert len(errors) == 3
    assert set(errors.values()) == {
        "Two processes have index 1. Give each its own --process_index, 0 to 2."
    }
    (message,) = set(all_meet((3, 0), (3, 1), (4, 2)).values())
    assert message.startswith("Process 2 was started as one of 4 processes, process 0 as one of 3")


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_process_that_was_killed_may_start_again_while_others_are_awaited(
    order: tuple[int, int],
) -> None:
    """Whether it comes before or after the last of the others, who must not complete the set."""
    port, errors = free_port(), {}

    def take_part(index: int) -> None:
        try:
            meeting.meet(f"localhost:{port}", 3, index, 20)
            errors[index] = ""
        except ValueError as error:
            errors[index] = str(error)

    threads = [threading.Thread(target=take_part, args=(index,)) for index in range(3)]
    threads[0].start()
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            killed = socket.create_connection(("localhost", port))
            break
        assert time.monotonic() < deadline
    with killed:
        killed.sendall(meeting._greeting(1, 3, meeting.shared_secret()))
        time.sleep(0.5)  # process 0 has read it
    for each in order:
        threads[each].start()
        time.sleep(0.2)
    for each in threads:
        each.join()
    assert errors == {0: "", 1: "", 2: ""}


def test_a_process_that_comes_later_reports_it_as_well() -> None:
    errors = all_meet((3, 0), (4, 2), (3, 1), late=1)
    assert len(errors) == 3
    (message,) = set(errors.values())
    assert message.startswith("Process 2 was started as one of 4 processes, process 0 as one of 3")


def test_missing_processes_are_named() -> None:
    errors = all_meet((5, 0), (5, 2), (5, 4), timeout=1)
    for message in errors.values():
        assert "Of 5 processes, 1, 3 did not reach process 0 in 1 seconds." in message


def test_two_first_processes() -> None:
    errors = all_meet((2, 0), (2, 0), timeout=1)
    assert any("Is another process 0 running?" in message for message in errors.values())


def first_of_two(port: int, errors: list[str], timeout: float = 20) -> threading.Thread:
    """Process 0 in a thread, once it listens."""

    def meet() -> None:
        try:
            meeting.meet(f"localhost:{port}", 2, 0, timeout)
            errors.append("")
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=meet)
    thread.start()
    return thread


def knock(port: int, content: bytes) -> socket.socket:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            connection = socket.create_connection(("localhost", port))
            connection.sendall(content)
            return connection


SIGNATURE = b"0" * 64
SIGNED = meeting._greeting(1, 2, b"")
STRANGERS = (
    *(b"", b"\n", b"GET / HTTP/1.1\r\n", b"\xff" * 9000, b"idode_gin 4 x y\n"),
    *(b"idode_gin 3 1 2\n", b"idode_gin 4 1 2\n", b"idode_gin 4 1 2 %s\n" % SIGNATURE),
    *(meeting._greeting(*each, b"") for each in ((7, 2), (0, 2))),
    *(SIGNED.replace(b"\n", b"\r\n"), SIGNED.replace(b"4 1 2", b"4 1 3"), SIGNED[:-9]),
    *(meeting._greeting(*each, b"another") for each in ((1, 2), (1, 3), (9, 10))),
)


def test_strangers_at_the_door_change_nothing() -> None:
    port, errors = free_port(), []
    host = first_of_two(port, errors)
    strangers = [knock(port, content) for content in STRANGERS]  # that stay
    connections = meeting.meet(f"localhost:{port}", 2, 1, 20)
    host.join()
    assert errors == [""]
    assert connections.is_open
    with pytest.raises(ConnectionRefusedError):  # nobody can come in later
        socket.create_connection(("localhost", port))
    for each in strangers:
        each.close()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDODE_GIN_SECRET", "PMIX_NAMESPACE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_processes_of_one_run_share_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [meeting.shared_secret()]
    for name in ("SLURM_JOB_ID", "PMIX_NAMESPACE", "IDODE_GIN_SECRET"):
        monkeypatch.setenv(name, "")
        assert meeting.shared_secret() == secrets[-1]
        monkeypatch.setenv(name, f"of {name}")
        secrets.append(meeting.shared_secret())
    assert len(set(secrets)) == 4
    assert set(all_meet((3, 2), (3, 0), (3, 1)).values()) == {""}


def test_another_run_at_the_same_port_is_refused() -> None:
    listener, found = meeting.listen("127.0.0.1", 0), []
    port = listener.getsockname()[1]
    host = threading.Thread(target=lambda: found.append(meeting.gather(listener, 2, 60, b"one")))
    host.start()
    with pytest.raises(ValueError, match="process 0 of this run would, with the same IDODE_GIN"):
        meeting.reach("127.0.0.1", port, 2, 1, 1, b"two")
    assert meeting.reach("127.0.0.1", port, 2, 1, 60, b"one").is_open
    host.join()
    assert found[0].is_open


def test_idle_strangers_do_not_use_up_the_files_of_process_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meeting, "_MOST_UNREAD", 20)
    port, errors = free_port(), []
    host = first_of_two(port, errors)
    strangers = [knock(port, b"idode") for _ in range(30)]
    for each in strangers[:9]:
        each.settimeout(10)
        assert each.recv(1) == b""  # the oldest are closed
    assert meeting.meet(f"localhost:{port}", 2, 1, 20).is_open
    host.join()
    assert errors == [""]
    for each in strangers:
        each.close()


def test_strangers_that_send_a_byte_at_times_cause_no_delay() -> None:
    port, errors, is_over = free_port(), [], threading.Event()
    host = first_of_two(port, errors, timeout=1)
    stranger = knock(port, b"i")

    def trickle() -> None:
        with contextlib.suppress(OSError):
            for each in b"dode_gin 4 1":
                is_over.wait(1)
                stranger.sendall(bytes([each]))

    slow = threading.Thread(target=trickle)
    slow.start()
    host.join()
    assert slow.is_alive()
    is_over.set()
    slow.join()
    stranger.close()
    assert "Of 2 processes, 1 did not reach process 0 in 1 seconds." in errors[0]


def test_only_the_coordinators_address_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meeting.bind_address("localhost") in ("127.0.0.1", "::1")
    assert meeting.bind_address("127.0.0.1") == "127.0.0.1"
    assert meeting.bind_address("[::1]") in ("::1", "")  # where there is no IPv6
    assert meeting.bind_address("203.0.113.7") == ""  # a gateway's
    assert meeting.bind_address("no.such.host.invalid") == ""
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: loopback)
    assert meeting.bind_address("node7") == ""  # as Debian's /etc/hosts has it
    monkeypatch.undo()
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "127.0.0.1:1")
    assert meeting.bind_address("203.0.113.7") == "127.0.0.1"


def test_an_address_that_is_none() -> None:
    for address in ("host", "host:", ":1", "host:x", "host:99999"):
        with pytest.raises(ValueError, match="must be host:port"):
            meeting.meet(address, 2, 1, 1)


def test_a_program_of_another_kind_at_the_address() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"220 mail.example\n")
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ValueError, match="does not answer as process 0"):
            meeting.meet(f"localhost:{port}", 2, 1, 0.5)
