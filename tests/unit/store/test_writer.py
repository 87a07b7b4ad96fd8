"""Group commit, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from streamline.store.writer import COMPANY, MAX_BYTES, MAX_COUNT, MAX_IN_FLIGHT, Writer


class Item(msgspec.Struct, frozen=True):
    name: int
    size: int = 1


class Server:
    """Answers a group when told to."""

    def __init__(self) -> None:
        self.groups: list[list[Item]] = []
        self.gate = asyncio.Event()
        self.failures: dict[int, Exception] = {}

    async def send(self, items: Sequence[Item]) -> Sequence[int | Exception]:
        self.groups.append(list(items))
        await self.gate.wait()
        return [self.failures.get(item.name, item.name) for item in items]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_item_goes_out_at_once() -> None:
    server = Server()
    server.gate.set()
    writer: Writer[Item, int] = Writer(server.send)
    assert [await writer.write(Item(1)), await writer.write(Item(2))] == [1, 2]
    assert server.groups == [[Item(1)], [Item(2)]]


async def held_up(server: Server, writer: Writer[Item, int]) -> list[asyncio.Task[int]]:
    """Fill all but one of the places for writes in flight."""
    held = []
    for number in range(MAX_IN_FLIGHT - 1):
        held.append(asyncio.create_task(writer.write(Item(number))))
        await turns()
    return held


async def test_what_gathers_while_writes_are_in_flight_goes_together() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    held = await held_up(server, writer)
    rest = [asyncio.create_task(writer.write(Item(number))) for number in range(10, 20)]
    await turns()
    assert [len(group) for group in server.groups] == [1] * len(held)
    server.gate.set()
    assert await asyncio.gather(*held, *rest) == [*range(len(held)), *range(10, 20)]
    assert len(server.groups[-1]) == 10


async def test_groups_are_bounded_by_count_and_bytes() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    held = await held_up(server, writer)
    many = [asyncio.create_task(writer.write(Item(number))) for number in range(MAX_COUNT + 1)]
    await turns()
    assert len(server.groups[-1]) == MAX_COUNT
    server.gate.set()
    await asyncio.gather(*held, *many)

    server.gate.clear()
    server.groups.clear()
    held = await held_up(server, writer)
    sizes = [MAX_BYTES, 2 * MAX_BYTES, MAX_BYTES // 2, MAX_BYTES // 2]
    large = [asyncio.create_task(writer.write(Item(i, size))) for i, size in enumerate(sizes)]
    await turns()
    server.gate.set()
    await asyncio.gather(*held, *large)
    assert [len(group) for group in server.groups[len(held) :]] == [1, 1, 2]


async def test_a_crowd_is_shared_out_over_the_writes_in_flight() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    held = await held_up(server, writer)
    crowd = [asyncio.create_task(writer.write(Item(number))) for number in range(50)]
    await turns()
    assert len(server.groups[-1]) == 50, "one write may go, so all go with it"
    server.gate.set()
    await asyncio.gather(*held, *crowd)
    server.gate.clear()
    server.groups.clear()
    crowd = [
        asyncio.create_task(writer.write(Item(number))) for number in range(MAX_IN_FLIGHT * COMPANY)
    ]
    await turns()
    assert [len(group) for group in server.groups] == [COMPANY] * MAX_IN_FLIGHT
    server.gate.set()
    await asyncio.gather(*crowd)


@pytest.mark.parametrize("few", [1, COMPANY // 4])
async def test_a_write_leaves_no_few_behind(few: int) -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)

    async def groups_of(number: int) -> list[int]:
        server.gate.clear()
        server.groups.clear()
        crowd = [asyncio.create_task(writer.write(Item(each))) for each in range(number)]
        await turns()
        groups = [len(group) for group in server.groups]
        server.gate.set()
        await asyncio.gather(*crowd)
        return groups

    await groups_of(3)  # from now on it expects company
    assert await groups_of(COMPANY + few) == [COMPANY + few]
    assert await groups_of(2 * COMPANY + few) == [COMPANY + (few + 1) // 2, COMPANY + few // 2]


async def test_a_write_that_would_leave_some_waiting_takes_them_along() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    first = asyncio.create_task(writer.write(Item(0)))
    await turns()
    many = COMPANY + 3 * COMPANY // 4  # enough for two more writes, but one place is for crowds
    crowd = [asyncio.create_task(writer.write(Item(number))) for number in range(1, many + 1)]
    await turns()
    assert [len(group) for group in server.groups] == [1, many]
    server.gate.set()
    await asyncio.gather(first, *crowd)


async def test_a_few_wait_for_company_while_others_are_in_flight() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    held = await held_up(server, writer)
    few = [asyncio.create_task(writer.write(Item(number))) for number in range(COMPANY - 1)]
    await turns()
    assert len(server.groups) == len(held)
    few.append(asyncio.create_task(writer.write(Item(99))))
    await turns()
    assert len(server.groups[-1]) == COMPANY
    server.gate.set()
    await asyncio.gather(*held, *few)


async def test_the_error_of_one_item_falls_on_it_alone() -> None:
    server = Server()
    server.gate.set()
    server.failures[1] = ValueError("one")
    writer: Writer[Item, int] = Writer(server.send)
    results = await asyncio.gather(
        *(writer.write(Item(number)) for number in range(3)), return_exceptions=True
    )
    assert results == [0, server.failures[1], 2]


async def test_the_error_of_a_group_falls_on_all_of_it() -> None:
    async def fail(items: Sequence[Item]) -> Sequence[int]:
        raise ValueError("all")

    writer: Writer[Item, int] = Writer(fail)
    for result in await asyncio.gather(
        *(writer.write(Item(number)) for number in range(3)), return_exceptions=True
    ):
        assert isinstance(result, ValueError)


async def test_a_writer_that_gave_up_disturbs_no_one() -> None:
    server = Server()
    writer: Writer[Item, int] = Writer(server.send)
    gone, kept = (asyncio.create_task(writer.write(Item(number))) for number in range(2))
    await turns()
    gone.cancel()
    await turns()
    server.gate.set()
    assert await kept == 1
    with pytest.raises(asyncio.CancelledError):
        await gone
    await writer.drain()
