"""Listening sockets: who serves which, and that none is lost."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fastgate.server.sockets import Listener, Listeners, bind_target, has_waiting, refuse_new


def test_every_socket_is_served_by_exactly_one_worker_however_many_there_are() -> None:
    listener = Listener("127.0.0.1:0")
    listener.grow(5)

    for workers in range(1, 6):
        served = [sock for slot in range(workers) for sock in listener.served_by(slot, workers)]
        assert sorted(map(id, served)) == sorted(map(id, listener.sockets))
    listener.close()


def test_all_sockets_of_a_listener_share_the_port_the_kernel_chose() -> None:
    listener = Listener("127.0.0.1:0")
    listener.grow(2)
    listener.grow(4)

    assert len({sock.getsockname() for sock in listener.sockets}) == 1
    assert listener.bound_address() == f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()


def test_a_bound_socket_takes_no_connection_until_somebody_listens() -> None:
    listener = Listener("127.0.0.1:0")
    first = listener.grow(1)[0]
    first.listen()
    listener.grow(8)
    address = first.getsockname()

    clients = [socket.create_connection(address, 5) for _ in range(32)]
    accepted = [first.accept()[0] for _ in clients]

    assert len(accepted) == 32
    for sock in [*clients, *accepted]:
        sock.close()
    listener.close()


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        listener = Listener(f"127.0.0.1:{other.getsockname()[1]}")

        with pytest.raises(OSError, match="in use"):
            listener.grow(1)


def test_no_connection_begins_after_refuse_new_and_those_that_wait_are_still_there() -> None:
    listener = Listener("127.0.0.1:0")
    sock = listener.grow(1)[0]
    sock.listen()
    before = socket.create_connection(sock.getsockname(), 5)

    refuse_new([sock])

    late = socket.socket()
    late.setblocking(False)
    assert late.connect_ex(sock.getsockname()) != 0
    assert has_waiting([sock])
    accepted, _ = sock.accept()
    assert not has_waiting([sock])
    for other in (before, accepted, late):
        other.close()
    listener.close()


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    listener = Listener(f"unix:{path}")

    listener.grow(3)
    listener.sockets[0].listen()

    assert len(listener.sockets) == 1
    with pytest.raises(OSError, match="in use"):
        Listener(f"unix:{path}").grow(1)
    listener.close()
    assert not path.exists()


def test_another_gateways_unix_socket_is_left_alone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = Listener(f"unix:{path}")
    listener.grow(1)
    os.unlink(path)
    path.write_text("somebody else's")

    listener.close()

    assert path.exists()


def test_the_same_address_twice_is_two_listeners_that_stay_themselves() -> None:
    listeners = Listeners()
    first = listeners.resolve(["127.0.0.1:0", "127.0.0.1:0"])
    listeners.replace(first)

    again = listeners.resolve(["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:1"])

    assert first[0] is not first[1]
    assert again[:2] == first
    assert listeners.replace(again) == []
    assert listeners.replace([first[1]]) == [first[0], again[2]]


def test_no_host_means_every_ipv4_interface() -> None:
    assert bind_target(":80") == (socket.AF_INET, ("0.0.0.0", 80))
    assert bind_target("[::1]:80") == (socket.AF_INET6, ("::1", 80))
    assert bind_target("unix:/run/x") == (socket.AF_UNIX, "/run/x")
