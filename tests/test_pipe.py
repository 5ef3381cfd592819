from __future__ import annotations

import os
import struct
import threading
from multiprocessing import Pipe

import pytest

from localdist._pipe import FrameReader, FrameWriter, PatientWriter, Poller, frame

BODIES = [b"", b"x", b"abc" * 7, bytes(range(256)) * 300, b"end", b"L" * 1_000_000, b"", b"after"]


@pytest.fixture(params=[True, False], ids=["raw", "messages"])
def raw(request):
    """Both ways: descriptors as on POSIX, and the connection's own messages as on Windows."""
    return request.param


@pytest.fixture
def ends():
    receiver, sender = Pipe(duplex=False)
    yield receiver, sender
    receiver.close()
    sender.close()


def read_all(reader: FrameReader) -> list[bytes]:
    """Read until the end of the pipe."""
    found = []
    while (frames := reader.read()) is not None:
        found += frames
    return found


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def send_and_close(sender, pieces, raw):
    for piece in pieces:
        if raw:
            view = memoryview(piece)
            while view:
                view = view[os.write(sender.fileno(), view) :]
        else:
            sender.send_bytes(piece)
    sender.close()


def test_frame_puts_the_length_in_front():
    """A frame is its length, four bytes little endian, and its body."""
    assert frame(b"abc") == struct.pack("<I", 3) + b"abc"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 4096, 65_537], ids=str)
def test_frames_arrive_whole_however_they_are_cut(ends, raw, size):
    """Frames are the same when the stream arrives byte by byte, in odd pieces, or several at once."""
    receiver, sender = ends
    bodies = BODIES if size > 60 else [b"", b"x", b"abc" * 7, b"", b"end"]
    stream = b"".join(map(frame, bodies))
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    thread = in_thread(send_and_close, sender, pieces, raw)
    assert read_all(FrameReader(receiver, raw=raw)) == bodies
    thread.join()


def test_several_frames_in_one_piece_come_out_together(ends, raw):
    """What was written at once and fits is read at once; that is where batches get their speed from."""
    receiver, sender = ends
    FrameWriter(sender, raw=raw).write(frame(b"a") + frame(b"") + frame(b"b"))
    assert FrameReader(receiver, raw=raw).read() == [b"a", b"", b"b"]


def test_a_part_of_a_length_is_kept(ends, raw):
    """Two bytes of the four that a length has are no frame, and no error."""
    receiver, sender = ends
    reader, data = FrameReader(receiver, raw=raw), frame(b"abc")
    send = sender.send_bytes if not raw else lambda piece: os.write(sender.fileno(), piece)
    send(data[:2])
    assert reader.read() == []
    send(data[2:6])
    assert reader.read() == []
    send(data[6:] + frame(b"next")[:1])
    assert reader.read() == [b"abc"]
    send(frame(b"next")[1:])
    assert reader.read() == [b"next"]


def test_reading_never_waits_for_the_rest_of_a_frame(ends, raw):
    """After `ready`, `read` returns although the writer has stopped in the middle of a long frame."""
    receiver, sender = ends
    reader = FrameReader(receiver, raw=raw)
    beginning = frame(b"y" * 1_000_000)[:50_000]
    sender.send_bytes(beginning) if not raw else os.write(sender.fileno(), beginning)
    found: list[bytes] = []
    while reader.ready():
        found += reader.read() or []
    assert found == []


def test_the_end_of_the_pipe_is_none(ends, raw):
    """`read` returns None when the writer is gone, also in the middle of a frame."""
    receiver, sender = ends
    reader = FrameReader(receiver, raw=raw)
    send_and_close(sender, [frame(b"z" * 1000)[:500]], raw)
    assert reader.read() == []
    assert reader.ready()
    assert reader.read() is None
    assert reader.read() is None


def test_a_message_that_is_cut_off_is_the_end(ends):
    """A writer that dies within a message of the connection ends the pipe, and raises nothing."""
    receiver, sender = ends
    os.write(sender.fileno(), struct.pack("!i", 100) + b"only a part")
    sender.close()
    assert FrameReader(receiver, raw=False).read() is None


def test_writer_waits_for_room(ends, raw):
    """`FrameWriter.write` returns when a reader has taken what did not fit."""
    receiver, sender = ends
    writer = FrameWriter(sender, raw=raw)

    def write():
        writer.write(b"".join(map(frame, BODIES)))
        sender.close()

    thread = in_thread(write)
    assert read_all(FrameReader(receiver, raw=raw)) == BODIES
    thread.join()


def test_writer_without_a_reader_raises(ends, raw):
    """`FrameWriter.write` raises OSError when nobody reads the other end."""
    receiver, sender = ends
    receiver.close()
    with pytest.raises(OSError, match="pipe"):
        FrameWriter(sender, raw=raw).write(frame(b"x"))


def test_threads_do_not_mix_their_frames(ends, raw):
    """Frames that several threads write at once each arrive in one piece."""
    receiver, sender = ends
    writer = FrameWriter(sender, raw=raw)
    bodies = [bytes([65 + i]) * 100_000 for i in range(4)]

    def write(body):
        for _ in range(5):
            writer.write(frame(body))

    threads = [in_thread(write, body) for body in bodies]
    reader = FrameReader(receiver, raw=raw)
    found: list[bytes] = []
    while len(found) < 20:
        found += reader.read() or []
    assert sorted(found) == sorted(bodies * 5)
    for thread in threads:
        thread.join()


# -- PatientWriter


def flush_all(writer: PatientWriter, poller: Poller) -> None:
    while writer.blocked:
        poller.watch_writeable(writer, writer)
        _, writeable = poller.wait(10)
        assert writeable == [writer]
        writer.flush()


def test_patient_writer_never_waits(ends, raw):
    """Writing megabytes to a pipe that nobody reads returns at once; all of it arrives later, in order."""
    receiver, sender = ends
    writer, poller = PatientWriter(sender, raw=raw), Poller(raw=raw)
    bodies = [bytes([65 + i]) * 700_000 for i in range(5)]
    for body in bodies:
        writer.write(frame(body))
    assert writer.blocked is raw  # otherwise a thread does the waiting
    found: list[bytes] = []
    reader = FrameReader(receiver, raw=raw)

    def read():
        while len(found) < 5:
            found.extend(reader.read() or [])

    thread = in_thread(read)
    flush_all(writer, poller)
    thread.join()
    assert found == bodies
    writer.close()
    poller.close()


def test_patient_writer_delivers_before_it_closes(ends, raw):
    """What was written before `close` arrives, if it fits or somebody reads."""
    receiver, sender = ends
    writer = PatientWriter(sender, raw=raw)
    for i in range(100):
        writer.write(frame(b"%d" % i))
    writer.close()
    assert read_all(FrameReader(receiver, raw=raw)) == [b"%d" % i for i in range(100)]


def test_patient_writer_ignores_that_its_reader_is_gone(ends, raw):
    """A reader that dies is noticed elsewhere: neither writing nor closing raises."""
    receiver, sender = ends
    writer = PatientWriter(sender, raw=raw)
    writer.write(frame(b"x" * 1_000_000))
    receiver.close()
    writer.flush() if raw else None
    writer.write(frame(b"y"))
    assert not writer.blocked
    writer.close()


def test_closed_writer_writes_nothing(ends):
    """After `close` a late `flush` does not touch the descriptor, whose number may belong to somebody else."""
    _, sender = ends
    writer = PatientWriter(sender, raw=True)
    writer.write(frame(b"x" * 1_000_000))
    number = sender.fileno()
    other_reader, other_writer = os.pipe()
    writer.close()
    os.dup2(other_writer, number)
    os.set_blocking(other_reader, False)
    writer.flush()
    with pytest.raises(BlockingIOError):
        os.read(other_reader, 1)
    for descriptor in {other_reader, other_writer, number}:
        os.close(descriptor)


# -- Poller


def test_poller_reports_what_can_be_read(ends, raw):
    """`wait` returns the tokens of readable pipes, again until they are read, and none when the time is over."""
    receiver, sender = ends
    poller = Poller(raw=raw)
    poller.add("token", receiver)
    assert poller.wait(0) == ([], [])
    FrameWriter(sender, raw=raw).write(frame(b"x"))
    assert poller.wait(10) == (["token"], [])
    assert poller.wait(10) == (["token"], [])
    FrameReader(receiver, raw=raw).read()
    assert poller.wait(0) == ([], [])
    sender.close()
    assert poller.wait(10) == (["token"], [])
    poller.remove(receiver)
    assert poller.wait(0) == ([], [])
    poller.close()


def test_poller_watches_plain_descriptors(ends, raw):
    """Anything with a `fileno` can be watched, such as the sentinel of a process."""
    receiver, sender = ends

    class Sentinel:
        def fileno(self):
            return receiver.fileno()

    poller = Poller(raw=raw)
    poller.add("ended", Sentinel())  # type: ignore[arg-type]  # it has a fileno
    sender.close()
    assert poller.wait(10) == (["ended"], [])
    poller.remove(Sentinel())
    poller.close()


def test_wake_ends_a_wait(raw):
    """A wake-up ends the wait at hand, or the next one; any number of them count as one, and none ever blocks."""
    poller = Poller(raw=raw)
    thread = in_thread(poller.wake)
    assert poller.wait(10) == ([], [])
    thread.join()
    wakes = 100_000 if raw else 1000  # more than a pipe holds
    for _ in range(wakes):
        poller.wake()
    rounds = 0
    while poller._receiver.poll(0):
        assert poller.wait(10) == ([], [])
        rounds += 1
    assert rounds < wakes
    poller.close()
    poller.wake()  # harmless


def test_a_removed_writer_is_not_reported(ends):
    """`remove` forgets a writer that waits for room, so that its number may be used again."""
    receiver, sender = ends
    writer, poller = PatientWriter(sender, raw=True), Poller(raw=True)
    writer.write(frame(b"x" * 1_000_000))
    poller.watch_writeable(writer, writer)
    poller.remove(writer)
    writer.close()
    os.read(receiver.fileno(), 1 << 20)
    assert poller.wait(0) == ([], [])
    poller.close()
