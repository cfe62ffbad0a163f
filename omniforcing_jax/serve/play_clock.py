"""Where a viewer is in the stream, as far as the server can know: reckoned from time, corrected by what is reported.

All in seconds. Times of day are the caller's, so that tests move them by hand.
"""

import dataclasses

SLACK_S = 3.0
"""Seconds by which reports may be ahead of the reckoning, as after a jump to the live edge."""
REGAINED = 0.25
"""Slack that comes back per second: false reports make a stream run a quarter faster, and not as fast as it goes."""


@dataclasses.dataclass
class PlayClock:
    """The place of one viewer in the stream.

    Attributes:
        place_s: Stream second at `since`.
        since: Time of day at which the viewer was there.
        sent_s: End of what was sent to it. Nothing later can have been played.
        is_playing: Whether it moves.
        stalls: How often it has waited for what was not sent yet.
        slack_s: Seconds by which reports may still be ahead.
        heard: Time of day of the last report.
    """

    place_s: float
    since: float
    sent_s: float
    is_playing: bool = True
    stalls: int = 0
    slack_s: float = SLACK_S
    heard: float = 0.0

    def at(self, now: float) -> float:
        """Return the stream second that is being played."""
        moved = self.place_s + (now - self.since if self.is_playing else 0.0)
        return min(moved, max(self.place_s, self.sent_s))

    def is_waiting(self, now: float) -> bool:
        """Return whether everything that was sent has been played."""
        return self.is_playing and self.at(now) >= self.sent_s

    def send(self, end_s: float, now: float) -> None:
        """Note that the viewer was sent everything up to a stream second."""
        if self.sent_s > self.place_s and self.is_waiting(now):
            self.stalls += 1
        self.place_s, self.since = self.at(now), now
        self.sent_s = max(self.sent_s, end_s)

    def jump(self, place_s: float, now: float) -> None:
        """Go on elsewhere: what lies between was left out."""
        self.place_s, self.since, self.sent_s = place_s, now, place_s

    def report(self, second: float, is_playing: bool, now: float) -> None:
        """Take what the viewer itself says, within what can be true."""
        reckoned_s = self.at(now)
        slack_s = min(SLACK_S, self.slack_s + REGAINED * (now - self.heard))
        most = min(reckoned_s + slack_s, max(self.sent_s, self.place_s))
        self.place_s, self.since, self.is_playing = min(max(0.0, second), most), now, is_playing
        self.slack_s, self.heard = slack_s - max(0.0, self.place_s - reckoned_s), now
