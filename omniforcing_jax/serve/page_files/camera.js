// The camera's pad: which moves are on, by keys that are held and buttons that are pressed, and the path that is asked.

const KEYS = { w: "w", a: "a", s: "s", d: "d", arrowup: "i", arrowdown: "k", arrowleft: "j", arrowright: "l" };
const OPPOSITE = { w: "s", s: "w", a: "d", d: "a", i: "k", k: "i", j: "l", l: "j" };
const HELD_FRAMES = 240; // that a move lasts, if it is not asked for again: a page that is gone moves nothing
const AGAIN_MS = 4000; // after which a move that is still on is asked for again
const TAP_FRAMES = 12; // of a move that was over before any block had it
const TOGETHER_MS = 100; // in which changes become one request
const TYPED = "input:not([type=checkbox]), textarea, select";

export class CameraPad {
  // `root` has buttons with data-move; `send` takes a path, as w-24,none-24, and returns what sends it.
  constructor(root, send) {
    this.buttons = [...root.querySelectorAll("[data-move]")];
    this.stop = root.querySelector("[data-stop]");
    this.words = root.querySelector("[data-words]");
    this.send = send;
    this.last = Promise.resolve();
    this.isOn = false;
    this.reset();
    for (const button of this.buttons) button.onclick = () => this.toggle(button.dataset.move);
    this.stop.onclick = () => this.release();
    setInterval(() => this.moves().length && this.flush(), AGAIN_MS);
  }

  // Forget all moves; nothing is sent.
  reset() {
    clearTimeout(this.timer);
    this.timer = null;
    this.held = new Set();
    this.pressed = new Set();
    this.unseen = new Set(); // moves that no block has had yet
    this.show();
  }

  enable(isOn) {
    this.isOn = isOn;
    if (!isOn && this.moves().length) this.reset();
    for (const button of [...this.buttons, this.stop]) button.disabled = !isOn;
  }

  moves() {
    return [...new Set([...this.held, ...this.pressed])];
  }

  show() {
    const moves = this.moves();
    const on = this.buttons.filter((button) => moves.includes(button.dataset.move));
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(on.includes(button)));
    this.words.textContent = on.length ? on.map((button) => button.title).join(", ") : "No move";
  }

  // Take a key that goes down; returns whether it is the camera's. What is typed into a field is not.
  keyDown(event) {
    const move = KEYS[event.key?.toLowerCase()]; // a browser that fills in a field sends no key
    if (!this.isOn || !move || event.ctrlKey || event.metaKey || event.altKey || event.target.closest(TYPED)) return false;
    if (!this.held.has(move)) this.begin(move, this.held);
    return true;
  }

  keyUp(event) {
    if (this.held.delete(KEYS[event.key?.toLowerCase()])) this.change();
  }

  // Let go of all moves, or only of the keys.
  release(onlyKeys = false) {
    if (onlyKeys && !this.held.size) return;
    this.held.clear();
    if (!onlyKeys) this.pressed.clear();
    this.change();
  }

  toggle(move) {
    if (this.pressed.delete(move)) this.change();
    else this.begin(move, this.pressed);
  }

  begin(move, moves) {
    for (const each of [this.held, this.pressed, this.unseen]) each.delete(OPPOSITE[move]);
    moves.add(move);
    this.unseen.add(move);
    this.change();
  }

  change() {
    this.show();
    this.timer ??= setTimeout(() => this.flush(), TOGETHER_MS);
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    const send = this.send(this.path()); // as it is now, and for what plays now
    this.last = this.last.then(send);
  }

  path() {
    const moves = this.moves();
    if (moves.length) {
      this.unseen = new Set(moves.filter((move) => this.unseen.has(move))); // others are given up
      return `${moves.join("")}-${HELD_FRAMES}`;
    }
    return this.unseen.size ? `${[...this.unseen].join("")}-${TAP_FRAMES},none-24` : "none-24";
  }

  // Note that a block was made with a path.
  applied(path) {
    for (const move of path.split("-")[0]) this.unseen.delete(move);
  }
}
