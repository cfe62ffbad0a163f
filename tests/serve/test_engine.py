"""Sessions on one device: turns, sleep, seats, prompts, forks, saves. Time is moved by hand."""

import pytest
from fake import body

from omniforcing_jax.serve import requests, viewers
from omniforcing_jax.serve.limits import RefusedError
from omniforcing_jax.serve.messages import PromptBody


def watch(stage, session, at_start=False):
    return viewers.join(stage.engine, session, lambda: None, at_start)


def read(stage, session, viewer):
    """Take all fragments that there are."""
    found = []
    while (taken := viewers.take(stage.engine, session, viewer)).fragment is not None:
        found.append(taken.fragment)
    return found


def play(stage, pairs, seconds):
    """Let viewers take fragments as they come, for some time."""
    end = stage.clock.now + seconds
    while stage.clock.now < end:
        stage.run(0.1)
        for session, viewer in pairs:
            read(stage, session, viewer)


def test_a_stream_is_made_at_most_ahead_of_its_viewer(stage):
    it = stage(ahead_s=3.0)
    session = requests.create(it.engine, body(), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 20)
    lead = session.made_s - viewer.clock.at(it.clock.now)
    assert 1.8 < lead <= 3.01
    assert viewer.clock.stalls == 0


def test_a_stream_that_nobody_watches_sleeps_and_wakes_where_it_was(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    it.run(30)
    assert session.made_s < 3.1
    assert requests.view(it.engine, session).state == "asleep"
    viewer = watch(it, session)
    play(it, [(session, viewer)], 5)
    assert requests.view(it.engine, session).state == "running"
    viewers.leave(it.engine, session, viewer)
    it.run(1)
    made_s = session.made_s
    it.run(60)
    assert session.made_s == made_s
    assert session.source is not None


def test_four_streams_share_a_device_that_is_six_times_as_fast_and_the_fifth_waits(stage):
    it = stage(cost_s=1 / 6)
    sessions = [requests.create(it.engine, body(), "me") for _ in range(5)]
    pairs = [(session, watch(it, session)) for session in sessions]
    play(it, pairs, 12)
    assert [session.state for session in sessions] == ["running"] * 4 + ["queued"]
    assert requests.view(it.engine, sessions[4]).place == 1
    assert sum(viewer.clock.stalls for _, viewer in pairs) == 0
    requests.delete(it.engine, sessions[0])
    play(it, pairs[1:], 5)
    assert sessions[4].state == "running"


def test_a_seat_that_nobody_uses_goes_to_who_waits(stage):
    it = stage(seats=1)
    first, second = (requests.create(it.engine, body(), "me") for _ in range(2))
    viewer = watch(it, first)
    play(it, [(first, viewer)], 20)
    assert second.state == "queued"
    viewers.leave(it.engine, first, viewer)
    it.run(11)
    assert second.state == "running"
    watch(it, second)
    watch(it, first)
    assert first.state == "queued"


def test_a_prompt_gets_two_receipts(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 5)
    received = requests.change_prompt(it.engine, session, PromptBody(prompt="a green ball"))
    assert (received.stage, received.block, session.receipts[-1]) == ("received", None, received)
    play(it, [(session, viewer)], 2)
    applied = session.receipts[-1]
    assert (applied.id, applied.stage, applied.block) == (received.id, "applied", session.source.block - 2)
    assert applied.second == pytest.approx((1 + 24 * (applied.block - 1)) / 24)
    assert applied.delay_s <= 2
    assert session.source.prompts == ("a green ball",)


def test_of_prompts_for_one_border_the_last_counts(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    it.run(0.05)
    for prompt in ("one", "two", "refused"):
        requests.change_prompt(it.engine, session, PromptBody(prompt=prompt))
    it.settle()
    requests.change_prompt(it.engine, session, PromptBody(prompt="later", at=6.0))
    viewer = watch(it, session)
    play(it, [(session, viewer)], 10)
    assert [receipt.stage for receipt in session.receipts] == ["replaced", "replaced", "refused", "applied"]
    assert session.receipts[-1].second == pytest.approx(6 + 1 / 24)


def test_a_prompt_that_cannot_be_read_or_is_too_late_is_refused(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    it.run(5)
    with pytest.raises(ValueError, match="unknown word"):
        requests.change_prompt(it.engine, session, PromptBody(prompt="an unknown ball"))
    with pytest.raises(ValueError, match="at=1: "):
        requests.change_prompt(it.engine, session, PromptBody(prompt="a ball", at=1.0))


def test_a_paused_stream_makes_nothing_until_it_goes_on(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 3)
    requests.pause(it.engine, session, True)
    made_s = session.made_s
    play(it, [(session, viewer)], 5)
    assert (session.made_s, requests.view(it.engine, session).state) == (made_s, "paused")
    requests.pause(it.engine, session, False)
    play(it, [(session, viewer)], 5)
    assert session.made_s > made_s


def test_a_fork_has_the_past_of_its_parent_and_a_future_of_its_own(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    it.run(3)
    done = requests.fork(it.engine, session, "me")
    it.run(0.1)
    other = done.result(0)
    requests.change_prompt(it.engine, other, PromptBody(prompt="only here"))
    viewer = watch(it, other, at_start=True)
    play(it, [(other, viewer)], 4)
    assert [fragment.number for fragment in other.history.all()] == list(range(len(other.history.all())))
    assert other.history.find(0) is session.history.find(0)
    assert (other.source.prompts, session.source.prompts) == (("only here",), ())


def test_a_stream_ends_and_can_still_be_read(stage):
    it = stage()
    session = requests.create(it.engine, body(seconds=2), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 4)
    assert (session.state, session.message) == ("ended", "the stream has ended")
    frames = session.history.newest().end_s * 24
    assert frames == pytest.approx(49)
    with pytest.raises(RefusedError, match="is over"):
        requests.change_prompt(it.engine, session, PromptBody(prompt="a ball"))


def test_a_stream_that_cannot_be_opened_fails_alone(stage):
    it = stage()
    bad, good = (requests.create(it.engine, body(prompt), "me") for prompt in ("this fails", "a ball"))
    it.run(2)
    assert (bad.state, bad.message) == ("failed", "this one fails")
    assert good.made_s > 1


def test_limits_are_said_in_words(stage):
    it = stage(max_sessions=3, per_client=2)
    for _ in range(2):
        requests.create(it.engine, body(), "me")
    with pytest.raises(RefusedError, match="you have 2 streams"):
        requests.create(it.engine, body(), "me")
    requests.create(it.engine, body(), "you")
    with pytest.raises(RefusedError, match="there are 3 streams"):
        requests.create(it.engine, body(), "them")
    with pytest.raises(RefusedError, match="no such stream"):
        it.engine.find("nothing")


def test_a_viewer_that_falls_behind_goes_on_with_the_newest_fragment(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    quick, slow = watch(it, session), watch(it, session)
    play(it, [(session, quick)], 3)
    assert viewers.take(it.engine, session, slow).fragment.number == 0
    play(it, [(session, quick)], 20)
    taken = viewers.take(it.engine, session, slow)
    assert taken.fragment is session.history.newest()
    assert taken.skipped == taken.fragment.number - 1
    assert session.underruns == 0
    assert quick.clock.stalls == 0


def test_who_comes_late_begins_where_the_others_are_or_at_the_start(stage):
    it = stage()
    session = requests.create(it.engine, body(), "me")
    first = watch(it, session)
    play(it, [(session, first)], 8)
    late, early = watch(it, session), watch(it, session, at_start=True)
    played_s = first.clock.at(it.clock.now)
    fragment = viewers.take(it.engine, session, late).fragment
    assert fragment.start_s <= played_s < fragment.end_s
    assert viewers.take(it.engine, session, early).fragment.number == 0


def test_the_history_is_bounded(stage):
    it = stage(history_bytes=20_000)
    session = requests.create(it.engine, body(), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 60)
    assert sum(len(each.data) for each in session.history.all()) <= 20_000
    assert session.history.find(0) is None


def test_saved_streams_are_offered_again_and_go_on(stage, tmp_path):
    it = stage(folder=tmp_path, save_every=4)
    session = requests.create(it.engine, body(), "me")
    viewer = watch(it, session)
    play(it, [(session, viewer)], 8)
    it.engine.saving.submit(lambda: None).result()
    again = stage(folder=tmp_path)
    offered = again.engine.sessions[session.id]
    assert offered.state == "saved"
    assert offered.block % 4 == 0
    block = offered.block
    watch(again, offered)
    again.run(2)
    assert offered.state == "running"
    assert offered.history.all()[0].blocks[0].index == block


def test_a_stream_that_nobody_wants_any_more_is_put_away(stage, tmp_path):
    it = stage(folder=tmp_path, idle_s=20.0, save_every=0)
    session = requests.create(it.engine, body(), "me")
    it.run(25)
    it.engine.saving.submit(lambda: None).result()
    assert (session.state, session.source) == ("saved", None)
    assert (tmp_path / session.id / "session.json").exists()
    requests.delete(it.engine, session)
    it.engine.saving.submit(lambda: None).result()
    assert not (tmp_path / session.id).exists()


def test_draining_saves_what_runs_and_takes_nothing_new(stage, tmp_path):
    it = stage(folder=tmp_path)
    session = requests.create(it.engine, body(), "me")
    it.run(3)
    it.engine.drain()
    assert (tmp_path / session.id / "stream" / "fake.txt").read_text() == str(session.block)
    with pytest.raises(RefusedError, match="going down"):
        requests.create(it.engine, body(), "me")
