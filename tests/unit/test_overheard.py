"""What is heard of a run's inbox between its claim and the reply."""

from __future__ import annotations

from streamline.worker.overheard import LIMIT, Overheard


def test_what_was_heard_since_the_claim_counts() -> None:
    overheard = Overheard()
    overheard.note("r", 7, claims=3)
    assert overheard.since(3, "r") == 7


def test_what_was_heard_before_the_claim_is_in_its_reply() -> None:
    overheard = Overheard()
    overheard.note("r", 7, claims=2)
    assert overheard.since(3, "r") == 0


def test_a_late_notice_hides_no_newer_message() -> None:
    overheard = Overheard()
    overheard.note("r", 7, claims=3)
    overheard.note("r", 5, claims=3)
    assert overheard.since(3, "r") == 7


def test_the_latest_is_remembered_of_so_many_runs() -> None:
    overheard = Overheard()
    for number in range(LIMIT + 1):
        overheard.note(str(number), 1, claims=1)
        overheard.note("often", number + 1, claims=1)
    assert overheard.since(1, "0") == 0
    assert overheard.since(1, str(LIMIT)) == 1
    assert overheard.since(1, "often") == LIMIT + 1
