"""The page in a real browser, against a server that draws the small world."""

import json
import re
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, MISSING, Person
from live_server import make_context, serving

from omniforcing_jax.chime.prompts import COLOURS
from omniforcing_jax.chime.track import watch
from omniforcing_jax.serve.mock import MockStudio

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


HLS = Path(sys.prefix) / "hls" / "dist" / "hls.min.js"


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def person(chromium):
    """Open pages; whatever happens there, nothing may go wrong and no other host may be asked."""
    people, contexts = [], []

    def come(url, **values):
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 960}, **values))
        people.append(Person(contexts[-1].new_page()))
        people[-1].page.goto(url)
        return people[-1]

    yield come
    for each in people:
        assert not each.errors
        assert all(host.startswith("127.0.0.1:") for host in each.hosts)
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def url():
    with serving(make_context()) as found:
        yield found


def colours_of(pictures):
    """Colours of the balls that are seen in most frames."""
    visible = watch(pictures).visible
    return {COLOURS[i] for i in range(len(COLOURS)) if visible[:, i].mean() > 0.5}


def start(it, prompt="a red ball"):
    it.wait(lambda: it.page.query_selector("#suggestions button"))
    it.say(prompt)
    it.wait_until_it_plays()


def test_it_plays_and_a_prompt_that_is_typed_is_seen(person, url):
    it = person(url)
    start(it)
    assert not it.page.is_visible("#camera")
    before = it.figures()
    it.say("a green ball")
    it.wait_for_change()
    moved, took = it.watch_for(2.0)
    after = it.figures()
    assert abs(moved - took) < 0.3
    assert after["sound"] > before["sound"]
    assert after["picture"] > before["picture"]
    assert "shown from" in it.page.inner_text("#changes")
    times, pictures, receipts = it.was_sent()
    assert [each["stage"] for each in receipts] == ["received", "applied"]
    changed = times >= receipts[-1]["second"] - 1e-3
    assert (colours_of(pictures[~changed]), colours_of(pictures[changed])) == ({"red"}, {"green"})


def moves_on(it):
    """Moves whose buttons are lit."""
    return [each.get_attribute("data-move") for each in it.page.query_selector_all("[data-move][aria-pressed=true]")]


# Over before it is asked for: such a move is not lost.
TAP = """() => {
  document.querySelector("[data-move=a]").click();
  document.querySelector("[data-stop]").click();
}"""


def test_keys_and_buttons_move_the_camera_and_typing_does_not(person):
    with serving(make_context(MockStudio(has_camera=True))) as url:
        it = person(url)
        start(it)
        it.page.press("#prompt", "w")
        assert moves_on(it) == []
        it.page.locator("#state").click()
        for key in ("d", "ArrowUp"):
            it.page.keyboard.down(key)
        assert moves_on(it) == ["d", "i"]
        it.wait(lambda: "shown from" in it.page.inner_text("#camera-words"))
        assert "Right, Tilt up" in it.page.inner_text("#camera")
        it.page.focus("[data-move=s]")
        for key in ("d", "ArrowUp"):
            it.page.keyboard.up(key)
        it.page.keyboard.press("Enter")
        assert moves_on(it) == ["s"]
        it.page.click("[data-stop]")
        assert moves_on(it) == []
        it.page.evaluate(TAP)
        it.wait(lambda: [each for each in cameras_of(it) if re.fullmatch("s?a-12,none-24", each)])
        assert "di-240" in cameras_of(it)
        assert not it.page.query_selector("#changes li")


def cameras_of(it):
    """Camera keys of the receipts that the page was sent."""
    messages = [json.loads(each) for each in it.frames if isinstance(each, str)]
    return [each["receipt"]["camera"] for each in messages if each["type"] == "receipt" and each["receipt"]["camera"]]


def test_a_prompt_that_cannot_be_read_is_said_in_words(person, url):
    it = person(url)
    start(it)
    it.say("a ball of fire")
    it.wait(lambda: "cannot read the prompt" in it.page.inner_text("#error"))
    assert it.errors
    assert "422" in it.errors.pop()  # the browser's own line on the refused request


def test_pause_and_reload(person, url):
    it = person(url)
    start(it)
    it.page.click("#pause")
    moved, _ = it.watch_for(0.5)
    assert moved < 0.1
    it.page.click("#pause")
    it.wait_until_it_plays()
    address = it.page.url
    it.page.reload()
    it.wait_until_it_plays()
    assert (it.page.url, "stream=" in address) == (address, True)
    assert it.page.inner_text("#state") == "running"


@pytest.mark.long
def test_two_people_side_by_side_and_a_third_in_the_queue(person):
    with serving(make_context(seats=2)) as url:
        people = [person(url) for _ in range(2)]
        for it, prompt in zip(people, ("a red ball", "a blue ball"), strict=True):
            start(it, prompt)
        third = person(url)
        third.wait(lambda: third.page.query_selector("#suggestions button"))
        third.say("a cyan ball")
        third.wait(lambda: "place 1 in the queue" in third.page.inner_text("#state"))
        assert "place 1" in third.page.inner_text("#cover-text")
        for it in people:
            moved, took = it.watch_for(3.0)
            assert abs(moved - took) < 0.3
        for it, colour in zip(people, ("red", "blue"), strict=True):
            assert colours_of(it.was_sent()[1]) == {colour}
        people[0].page.click("#delete")
        third.wait_until_it_plays()


@pytest.mark.long
def test_a_token_is_asked_for_refused_and_taken(person):
    with serving(make_context(token="secret123")) as url:
        it = person(url)
        it.wait(lambda: it.page.is_visible("#token-form"))
        it.page.fill("#token", "wrong-one")
        it.page.press("#token", "Enter")
        it.page.wait_for_timeout(300)
        assert "a token is needed" in it.page.inner_text("#error")
        it.page.fill("#token", "secret123")
        it.page.press("#token", "Enter")
        start(it)
        assert all("401" in error for error in it.errors)
        it.errors.clear()
        other = person(f"{url}/?token=secret123")
        start(other)
        assert "token" not in other.page.url


@pytest.mark.long
def test_fork_download_keyboard_and_a_narrow_screen(person, url, tmp_path):
    it = person(url)
    start(it)
    it.page.set_viewport_size({"width": 380, "height": 800})
    assert it.page.evaluate("() => document.documentElement.scrollWidth") <= 380
    it.page.locator("#state").click()
    it.page.keyboard.press("m")
    assert it.figures()["muted"]
    it.page.keyboard.press(" ")
    it.wait(lambda: it.figures()["paused"])
    it.page.keyboard.press(" ")
    it.wait(lambda: not it.figures()["paused"])
    first = it.page.url
    it.page.click("#fork")
    it.wait(lambda: it.page.url != first)
    it.wait_until_it_plays()
    with it.page.expect_download() as download:
        it.page.click("#download")
    download.value.save_as(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").stat().st_size > 10_000


PLAY_HLS = """async (address) => {
  const video = document.createElement("video");
  video.muted = true;
  document.body.append(video);
  const hls = new Hls({ enableWorker: false });
  window.faults = [];
  hls.on(Hls.Events.ERROR, (event, fault) => fault.fatal && window.faults.push(fault.details));
  hls.loadSource(address);
  hls.attachMedia(video);
  video.id = "hls";
  video.play().catch(() => {});
}"""


@pytest.mark.long
@pytest.mark.skipif(not HLS.exists(), reason="hls.js is not here: make browser")
def test_a_stock_hls_player_plays_a_stream_while_it_grows(person, url):
    it = person(url, bypass_csp=True)
    it.page.add_script_tag(path=HLS)
    stream = it.page.request.post(f"{url}/v1/streams", data={"prompt": "a red ball"}).json()["id"]
    it.page.evaluate(PLAY_HLS, f"/v1/streams/{stream}/index.m3u8")
    it.wait(lambda: it.page.evaluate("() => document.getElementById('hls').currentTime") > 8, 40.0)
    assert it.page.evaluate("() => window.faults") == []
    assert it.page.evaluate("() => document.getElementById('hls').webkitAudioDecodedByteCount") > 0
