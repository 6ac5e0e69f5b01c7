"""The ends of a stdio connection: whole and in order through pipes, sockets and files, however slow a client is."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from ksi_mcp.transports.pipes import LinesIn, TextOut


async def lines_of(fd: int) -> list[str]:
    return [line async for line in LinesIn(fd)]


def ends(kind: str) -> tuple[int, int]:
    """(to read from, to write to)."""
    if kind == "pipe":
        return os.pipe()
    one, two = socket.socketpair()
    return one.detach(), two.detach()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_client_that_reads_slowly_gets_all_of_it(kind):
    reading, writing = ends(kind)
    out = TextOut(writing)
    sent = ["é" * 3_000_000 + "\n", "short\n", "x" * 70_000 + "\n"]

    async def write() -> None:
        for text in sent:
            await out.write(text)
            await out.flush()
        out.close()
        os.close(writing)

    def read() -> bytes:
        with os.fdopen(reading, "rb") as file:
            return file.read()

    found, _ = await asyncio.gather(asyncio.to_thread(read), write())
    assert found.decode() == "".join(sent)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_nothing_else_waits_for_a_client_that_does_not_read(kind):
    reading, writing = ends(kind)
    out = TextOut(writing)
    stuck = asyncio.create_task(out.write("x" * 5_000_000))
    for _ in range(100):
        await asyncio.sleep(0)  # the loop goes on
    assert not stuck.done()
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    out.close()
    os.close(reading)
    os.close(writing)


async def test_a_client_that_has_gone_is_an_error_at_once():
    reading, writing = ends("pipe")
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await TextOut(writing).write("hello\n")
    os.close(writing)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_lines_come_whole_whatever_pieces_they_are_sent_in(kind):
    reading, writing = ends(kind)
    reader = asyncio.create_task(lines_of(reading))
    for piece in (b"one\ntw", b"o\n\n", b"\xff\xfe\n", b"y" * 200_000, b"\nlast without an end"):
        await asyncio.to_thread(os.write, writing, piece)
        await asyncio.sleep(0)
    os.close(writing)
    found = await asyncio.wait_for(reader, 10)
    os.close(reading)
    assert found == ["one", "two", "\ufffd\ufffd", "y" * 200_000, "last without an end"]


async def test_more_lines_than_are_read_ahead_all_arrive():
    reading, writing = ends("pipe")
    wanted = [str(number) for number in range(20_000)]

    def send() -> None:
        with os.fdopen(writing, "w") as file:
            file.write("\n".join(wanted))

    found, _ = await asyncio.gather(lines_of(reading), asyncio.to_thread(send))
    os.close(reading)
    assert found == wanted


async def test_lines_of_a_file_are_read_too(tmp_path):
    (tmp_path / "in").write_bytes(b"one\n" + b"z" * 100_000 + b"\n")
    with (tmp_path / "in").open("rb") as file:
        assert await lines_of(file.fileno()) == ["one", "z" * 100_000]


async def test_closing_ends_a_wait_for_lines():
    reading, writing = ends("pipe")
    lines = LinesIn(reading)

    async def read() -> list[str]:
        return [line async for line in lines]

    waiting = asyncio.create_task(read())
    await asyncio.sleep(0)
    lines.close()
    assert await asyncio.wait_for(waiting, 10) == []
    os.close(reading)
    os.close(writing)
