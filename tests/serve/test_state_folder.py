"""The folder of `--state`: it is bounded, and what runs is never removed from it."""

import pytest
from fake import FakeSource, FakeStudio, body

from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve.limits import RefusedError

LARGE = 100_000  # bytes of a saved stream


class LargeSource(FakeSource):
    def save(self, folder):
        super().save(folder)
        (folder / "large.bin").write_bytes(bytes(LARGE))


class LargeStudio(FakeStudio):
    def open(self, body, start, say):
        return LargeSource(self.clock, self.cost_s)


@pytest.fixture
def three(stage, tmp_path):
    """Three streams that run, on a server with room for two and a bit; functions that save and put away."""
    it = stage(folder=tmp_path, studio=LargeStudio, state_bytes=int(2.5 * LARGE), save_every=0, idle_s=20.0)
    sessions = []
    for i in range(3):
        it.clock.now += 1
        sessions.append(requests.create(it.engine, body(seed=i), "me"))
        it.run(1)
    return it, sessions, lambda: {each.name for each in tmp_path.iterdir()}


def save(it, session):
    """Save a session as a client asks for it."""
    done = requests.save(it.engine, session)
    it.engine.step()
    return done.result(1).result(10)


def test_the_stream_that_was_saved_longest_ago_makes_room(three):
    it, sessions, on_disk = three
    watched = viewers.join(it.engine, sessions[2], lambda: None, False)
    it.run(25)
    it.engine.saving.submit(lambda: None).result()
    assert [each.state for each in sessions] == ["saved", "saved", "running"]
    save(it, sessions[2])
    states = {each.id: each.state for each in sessions}
    (gone,) = set(states) - on_disk()
    assert (states[gone], gone) == ("ended", sessions[0].id)
    assert "its place on the disk" in sessions[0].message
    viewers.leave(it.engine, sessions[2], watched)
    with pytest.raises(RefusedError, match="is over"):
        requests.pause(it.engine, sessions[0], False)


def test_what_runs_is_never_removed_and_a_stream_without_room_is_refused(three):
    it, sessions, on_disk = three
    for session in sessions[:2]:
        save(it, session)
    with pytest.raises(RefusedError, match=r"not saved: there is no room for it in the 0\.00025 GB of .*--state-gb"):
        save(it, sessions[2])
    assert on_disk() == {each.id for each in sessions[:2]}
    it.run(1)
    assert save(it, sessions[0]).id == sessions[0].id  # again, in its own place
    it.engine.drain()
    assert [each.message.partition("; ")[2][:24] for each in sessions] == [
        "the stream is saved",
        "the stream is saved",
        "the stream is not saved:",
    ]
    assert on_disk() == {each.id for each in sessions[:2]}


def test_a_stream_that_has_no_room_when_it_is_put_away_has_ended(stage, tmp_path):
    it = stage(folder=tmp_path, studio=LargeStudio, state_bytes=LARGE // 2, save_every=0, idle_s=20.0)
    session = requests.create(it.engine, body(), "me")
    it.run(25)
    it.engine.saving.submit(lambda: None).result()
    assert session.state == "ended"
    assert "no room" in session.message or "place on the disk" in session.message
    assert not list(tmp_path.iterdir())
