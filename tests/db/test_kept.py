from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from ksi_mcp.db.kept import Kept
from ksi_mcp.tools.tool import View, Views


@dataclass(frozen=True, slots=True, kw_only=True)
class Dog:
    name: str
    age: int


class DogView(View):
    name: str


def rows(*dogs: tuple[str, int], order: str = "name, age") -> list[sqlite3.Row]:
    with sqlite3.connect(":memory:") as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("CREATE TABLE dog (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO dog VALUES (?, ?)", dogs)
        return connection.execute(f"SELECT {order} FROM dog ORDER BY rowid").fetchall()


def dog_of(row) -> Dog:
    return Dog(name=row["name"], age=row["age"])


def test_a_row_that_was_seen_gives_the_record_that_it_gave_and_a_changed_one_another():
    kept = Kept(dog_of, size=10)
    [ada, bo] = kept.of(rows(("ada", 1), ("bo", 2)))
    [again, older] = kept.of(rows(("ada", 1), ("bo", 3)))
    assert again is ada
    assert (bo.age, older.age) == (2, 3)
    assert kept.of([]) == []


def test_other_columns_are_another_row_although_the_values_are_the_same():
    kept = Kept(lambda row: tuple(row.items()), size=10)
    assert kept.of(rows((1, 1))) != kept.of(rows((1, 1), order="age, name"))


def test_no_more_are_kept_than_were_asked_for():
    kept = Kept(dog_of, size=2)
    [first] = kept.of(rows(("ada", 1)))
    kept.of(rows(("bo", 1), ("cy", 1)))
    [again] = kept.of(rows(("ada", 1)))
    assert again == first
    assert again is not first


def test_the_very_same_record_gives_the_same_view_and_an_equal_one_a_view_of_its_own():
    made: list[Dog] = []

    def view_of(dog: Dog) -> DogView:
        made.append(dog)
        return DogView(name=dog.name)

    views = Views(view_of, size=10)
    ada, twin = Dog(name="ada", age=1), Dog(name="ada", age=1)
    [one, two] = views.of([ada, ada])
    assert one is two
    [other] = views.of([twin])
    assert other == one
    assert made == [ada, twin]
