// Plays fragments as they come: one SourceBuffer with picture and sound, so both keep one clock.

const KEPT_S = 60; // behind the playhead, so that one can go back a little
const TOLERANCE_S = 0.08; // a start of a range that playback steps over by itself

export class Player {
  constructor(video, { onStall }) {
    this.video = video;
    this.onStall = onStall;
    this.stalls = 0;
    this.wantsToPlay = true;
    this.reset();
    video.addEventListener("waiting", () => {
      const hasPlayed = video.currentTime > this.begun_s + 0.2; // the wait for the first frame is none
      if (this.hasBegun && this.wantsToPlay && hasPlayed && !video.seeking) {
        this.stalls += 1;
        this.onStall();
      }
    });
  }

  reset() {
    this.queue = [];
    this.buffer = null;
    this.source = null;
    this.hasBegun = false;
    this.isOver = false;
    this.begun_s = 0;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.video.removeAttribute("src");
    this.video.load();
  }

  // A header: of a first stream, or of one that goes on after a cut.
  header(mime, bytes) {
    if (this.source) return this.append(bytes);
    if (!window.MediaSource || !MediaSource.isTypeSupported(mime)) {
      throw new Error(`This browser cannot play ${mime}.`);
    }
    const source = (this.source = new MediaSource());
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
    this.queue.push(bytes);
    source.addEventListener("sourceopen", () => {
      if (this.source !== source) return;
      this.buffer = source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.next());
      this.next();
    });
  }

  append(bytes) {
    this.queue.push(bytes);
    this.next();
  }

  end() {
    this.isOver = true;
    this.next();
  }

  next() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    this.begin();
    const { currentTime, buffered } = this.video;
    if (buffered.length && currentTime - buffered.start(0) > 2 * KEPT_S) {
      return this.buffer.remove(0, currentTime - KEPT_S);
    }
    const bytes = this.queue.shift();
    if (!bytes) {
      if (this.isOver) this.source.endOfStream();
      return;
    }
    try {
      this.buffer.appendBuffer(bytes);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.queue.unshift(bytes);
      this.buffer.remove(0, Math.max(0.1, currentTime - 5));
    }
  }

  // Play as soon as picture and sound are both there; a stream that is joined late does not begin at 0.
  begin() {
    const { buffered } = this.video;
    if (this.hasBegun || !buffered.length) return;
    this.hasBegun = true;
    this.begun_s = buffered.start(buffered.length - 1);
    this.video.currentTime = this.begun_s + 0.001;
    if (this.wantsToPlay) this.play();
  }

  async play() {
    this.wantsToPlay = true;
    if (!this.hasBegun) return true;
    try {
      await this.video.play();
      return true;
    } catch (error) {
      if (error.name !== "NotAllowedError") return true; // interrupted by another source
      this.video.muted = true;
      await this.video.play().catch(() => {});
      this.onMuted?.();
      return false;
    }
  }

  pause() {
    this.wantsToPlay = false;
    this.video.pause();
  }

  // What was left out is stepped over.
  stepOverGaps() {
    const { buffered, currentTime, paused } = this.video;
    if (paused || !this.hasBegun) return;
    for (let i = 0; i < buffered.length; i++) {
      if (currentTime >= buffered.start(i) - TOLERANCE_S && currentTime < buffered.end(i) - 0.02) return;
      if (buffered.start(i) > currentTime) {
        this.video.currentTime = buffered.start(i) + 0.001;
        return;
      }
    }
  }

  get end_s() {
    const { buffered } = this.video;
    return buffered.length ? buffered.end(buffered.length - 1) : 0;
  }

  get ahead_s() {
    return Math.max(0, this.end_s - this.video.currentTime);
  }

  goLive(behind_s) {
    const { buffered } = this.video;
    if (!buffered.length) return;
    const last = buffered.length - 1;
    this.video.currentTime = Math.max(buffered.start(last) + 0.001, buffered.end(last) - behind_s);
  }
}
