from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator

import pytest

from tensorcall.wire.limits import MIB
from tensorcall.wire.outbox import Outbox
from tensorcall.wire.protowire import Parts


def frame(text: str) -> Parts:
    """Frames of these tests end with a space, so that a message tells what it is made of."""
    return [text.encode(), memoryview(b" ")]


def chunks(name: str, count: int) -> Iterator[Parts]:
    return (frame(f"{name}{number}") for number in range(count))


def drain(outbox: Outbox) -> list[list[str]]:
    """What a thread that claims it gets, as frames of each message."""
    assert outbox.claim()
    messages = []
    while (message := outbox.next_message()) is not None:
        messages.append(message.decode().split())
    return messages


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


# --- order -----------------------------------------------------------------------------------------------------------


def test_what_gathered_leaves_together_and_in_order() -> None:
    outbox = Outbox()
    assert outbox.empty
    for name in "abc":
        assert outbox.put(frame(name))
    assert not outbox.empty
    assert drain(outbox) == [["a", "b", "c"]]
    assert outbox.empty


def test_chunks_follow_their_frame_one_a_message_and_take_turns() -> None:
    outbox = Outbox()
    outbox.put(frame("A"), chunks("a", 3))
    outbox.put(frame("B"), chunks("b", 1))
    outbox.put(frame("C"), chunks("c", 2))
    assert drain(outbox) == [["A", "B", "C", "a0"], ["b0"], ["c0"], ["a1"], ["c1"], ["a2"]]


def test_frames_overtake_the_chunks_of_others() -> None:
    outbox = Outbox()
    outbox.put(frame("A"), chunks("a", 3))
    assert outbox.claim()
    messages = []
    for name in "BCD":
        messages.append((outbox.next_message() or b"").decode().split())
        outbox.put(frame(name))
    assert messages == [["A", "a0"], ["B", "a1"], ["C", "a2"]]


def test_a_message_takes_frames_up_to_a_size() -> None:
    outbox = Outbox()
    half = "x" * (MIB // 2 - 1)
    for name in (half, half, "a", "b"):
        outbox.put(frame(name))
    assert [[each[:1] for each in message] for message in drain(outbox)] == [["x", "x"], ["a", "b"]]


def test_a_large_frame_goes_alone() -> None:
    """So that one which its receiver takes as a message is not refused for what came along."""
    outbox = Outbox()
    for name in ("a", "x" * 2 * MIB, "b"):
        outbox.put(frame(name), chunks(name[0], 1))
    messages = drain(outbox)
    assert [[each[:1] for each in message] for message in messages] == [["a", "a"], ["x"], ["b"], ["x"], ["b"]]


def test_chunks_go_on_while_many_frames_wait() -> None:
    outbox = Outbox()
    third = "x" * (MIB // 3)
    outbox.put(frame("A"), chunks("a", 3))
    for _ in range(9):
        outbox.put(frame(third))
    assert [message[-1][:2] for message in drain(outbox)] == ["a0", "a1", "a2", "xx", "xx"]


def test_a_chunk_never_overtakes_its_frame() -> None:
    outbox = Outbox()
    for _ in range(5):
        outbox.put(frame("x" * (MIB - 1)))
    outbox.put(frame("A"), chunks("a", 2))
    flat = [each[:2] for message in drain(outbox) for each in message]
    assert flat == ["xx"] * 5 + ["A", "a0", "a1"]


# --- sent ------------------------------------------------------------------------------------------------------------


def test_sent_is_called_when_the_writer_comes_back_after_the_last_chunk() -> None:
    outbox = Outbox()
    sent = Counter()
    outbox.put(frame("A"), chunks("a", 2), sent)
    assert outbox.claim()
    for expected in (b"A a0 ", b"a1 "):
        assert outbox.next_message() == expected
        assert sent.calls == 0
    assert outbox.next_message() is None
    assert sent.calls == 1


@pytest.mark.parametrize("following", [None, iter(())])
def test_sent_is_called_without_chunks(following: Iterator[Parts] | None) -> None:
    outbox = Outbox()
    sent = Counter()
    outbox.put(frame("A"), following, sent)
    assert drain(outbox) == [["A"]]
    assert sent.calls == 1


def test_sent_may_put_the_next_frame() -> None:
    outbox = Outbox()
    outbox.put(frame("A"), chunks("a", 1), lambda: outbox.put(frame("B")) and None)
    assert drain(outbox) == [["A", "a0"], ["B"]]


# --- the end ---------------------------------------------------------------------------------------------------------


def test_once_closed_it_takes_nothing_but_hands_out_what_is_there() -> None:
    outbox = Outbox()
    sent, refused = Counter(), Counter()
    outbox.put(frame("A"), chunks("a", 3), sent)
    outbox.put(frame("B"))
    outbox.close()
    outbox.close()
    assert not outbox.put(frame("C"), chunks("c", 1), refused)
    assert drain(outbox) == [["A", "B", "a0"], ["a1"], ["a2"]]
    assert (sent.calls, refused.calls) == (1, 0)
    assert not outbox.claim()
    assert outbox.take() is None


def test_what_is_discarded_counts_as_sent() -> None:
    outbox = Outbox()
    out, waiting = Counter(), Counter()
    outbox.put(frame("A"), chunks("a", 3), out)
    assert outbox.claim()
    assert outbox.next_message() == b"A a0 "
    outbox.put(frame("B"), chunks("b", 3), waiting)
    outbox.close(discard=True)
    assert (out.calls, waiting.calls) == (1, 1)
    assert outbox.next_message() is None
    assert outbox.take() is None
    outbox.close(discard=True)
    assert (out.calls, waiting.calls) == (1, 1)
    assert outbox.empty


def test_discarded_after_it_was_closed() -> None:
    outbox = Outbox()
    sent = Counter()
    outbox.put(frame("A"), chunks("a", 3), sent)
    outbox.close()
    outbox.close(discard=True)
    assert sent.calls == 1
    assert outbox.take() is None


def test_discarded_while_a_chunk_is_made() -> None:
    outbox = Outbox()
    sent = Counter()

    def making() -> Iterator[Parts]:
        yield frame("a0")
        outbox.close(discard=True)
        yield frame("a1")
        raise AssertionError("drawn after it was discarded")

    outbox.put(frame("A"), making(), sent)
    assert drain(outbox) == [["A", "a0"], ["a1"]]
    assert sent.calls == 1


# --- threads ---------------------------------------------------------------------------------------------------------


def test_one_at_a_time_may_claim_it() -> None:
    outbox = Outbox()
    assert not outbox.claim()
    outbox.put(frame("a"))
    assert outbox.claim()
    assert not outbox.claim()
    assert outbox.next_message() == b"a "
    assert not outbox.empty  # somebody is about to send it
    assert not outbox.claim()
    outbox.put(frame("b"))
    assert not outbox.claim()
    assert outbox.next_message() == b"b "
    assert outbox.next_message() is None
    assert outbox.empty
    assert not outbox.claim()


def test_a_thread_that_takes_is_woken() -> None:
    outbox = Outbox()
    taken: list[bytes | None] = []
    ready = threading.Semaphore(0)

    def take() -> None:
        while taken[-1:] != [None]:
            taken.append(outbox.take())
            ready.release()

    thread = threading.Thread(target=take)
    thread.start()
    for name in "abc":
        outbox.put(frame(name))
        assert ready.acquire(timeout=30)
    outbox.close()
    thread.join(30)
    assert taken == [b"a ", b"b ", b"c ", None]


PRODUCERS, FRAMES = 8, 400


class Load:
    """Frames of many threads, some with chunks, and what must be true of what arrives."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.outbox = Outbox()
        self.messages: list[bytes] = []
        self.accepted: list[list[tuple[int, int]]] = [[] for _ in range(PRODUCERS)]
        self.sent: list[Counter] = []
        self.writing = 0

    def produce(self, producer: int, after: threading.Event | None = None) -> None:
        rng = random.Random(self.seed * 1000 + producer)
        for number in range(FRAMES):
            name = f"{producer}.{number}"
            padding = "x" * rng.choice([0, 0, 10, 100_000, MIB // 2, MIB + 1]) if number % 30 == 0 else ""
            count = rng.choice([0, 0, 0, 1, 5])
            sent = Counter() if rng.random() < 0.5 else None
            following = chunks(f"{name}:", count) if count else None
            if self.outbox.put(frame(f"{name}{padding}"), following, sent):
                self.accepted[producer].append((number, count))
                if sent is not None:
                    self.sent.append(sent)
            if after is not None:
                self.write()

    def write(self) -> None:
        """As the server's session does: whoever has put something writes, unless another one does."""
        while self.outbox.claim():
            while (message := self.outbox.next_message()) is not None:
                self.writing += 1
                assert self.writing == 1, "two threads write at once"
                self.messages.append(message)
                self.writing -= 1

    def check(self, *, whole: bool) -> None:
        frames: list[list[int]] = [[] for _ in range(PRODUCERS)]
        parts: dict[str, list[int]] = {}
        for message in self.messages:
            texts = message.decode().split()
            assert len({text.split(":")[0] for text in texts if ":" in text}) <= 1, "more than one chunk in a message"
            for text in texts:
                name, _, part = text.partition(":")
                producer, number = name.rstrip("x").split(".")
                if part:
                    assert int(number) in frames[int(producer)], "a chunk came before its frame"
                    parts.setdefault(name, []).append(int(part))
                else:
                    frames[int(producer)].append(int(number))
        for producer, accepted in enumerate(self.accepted):
            numbers = [number for number, _ in accepted]
            assert frames[producer] == (numbers if whole else numbers[: len(frames[producer])])
            for number, count in accepted:
                found = parts.get(f"{producer}.{number}", [])
                assert found == (list(range(count)) if whole else list(range(len(found))))
        assert {sent.calls for sent in self.sent} == {1}


@pytest.fixture
def load() -> Iterator[Load]:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # pytest shows it where a test fails
    interval = sys.getswitchinterval()
    # Threads take turns in the midst of everything.
    sys.setswitchinterval(1e-6)
    yield Load(seed)
    sys.setswitchinterval(interval)


def together(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def producers(load: Load, after: threading.Event | None = None) -> list[threading.Thread]:
    return [threading.Thread(target=load.produce, args=(number, after)) for number in range(PRODUCERS)]


def test_many_threads_put_and_one_takes(load: Load) -> None:
    def take() -> None:
        load.messages.extend(iter(load.outbox.take, None))

    taker = threading.Thread(target=take)
    taker.start()
    together(*producers(load))
    load.outbox.close()
    taker.join(60)
    assert not taker.is_alive()
    assert all(len(accepted) == FRAMES for accepted in load.accepted)
    load.check(whole=True)


def test_many_threads_put_and_write_for_each_other(load: Load) -> None:
    """Nothing is left when the last one has gone: whoever puts while another one leaves writes himself."""
    together(*producers(load, threading.Event()))
    assert load.outbox.empty
    assert all(len(accepted) == FRAMES for accepted in load.accepted)
    load.check(whole=True)


@pytest.mark.parametrize("combining", [True, False])
def test_discarded_under_load(load: Load, combining: bool) -> None:
    """Some of it is lost then, but nothing is out of order, twice, or left waiting to be sent."""
    begun = threading.Event()

    def take() -> None:
        for message in iter(load.outbox.take, None):
            load.messages.append(message)
            begun.set()

    def close() -> None:
        if not combining:
            assert begun.wait(60)
        load.outbox.close(discard=True)

    extra = [] if combining else [threading.Thread(target=take)]
    threads = producers(load, threading.Event() if combining else None)
    together(*extra, *threads, threading.Thread(target=close))
    assert load.outbox.empty
    load.check(whole=False)
