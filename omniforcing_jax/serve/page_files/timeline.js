// The last minute of a stream: its blocks, what is buffered, changes of prompt with both receipts, and where one is.

const SHOWN_S = 40;

function shorten(paint, text, room) {
  if (paint.measureText(text).width <= room) return text;
  let kept = text.length;
  while (kept && paint.measureText(`${text.slice(0, kept)}…`).width > room) kept -= 1;
  return kept > 2 ? `${text.slice(0, kept)}…` : "";
}

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.reset();
  }

  reset() {
    this.blocks = []; // { index, start_s, end_s }
    this.receipts = new Map();
  }

  addFragment({ start_s, end_s, blocks }) {
    blocks.forEach((block, i) => {
      this.blocks.push({ index: block.index, start_s: block.start_s, end_s: blocks[i + 1]?.start_s ?? end_s });
    });
    if (this.blocks.length > 600) this.blocks.splice(0, 300);
  }

  addReceipt(receipt) {
    this.receipts.set(receipt.id, receipt);
  }

  draw({ playhead, edge, bufferEnd }) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const paint = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    const right = Math.max(SHOWN_S, Math.max(edge, playhead) + 3);
    const x = (second) => ((second - right + SHOWN_S) / SHOWN_S) * width;
    const [top, bottom] = [40, 66];

    paint.fillStyle = colour("line");
    paint.fillRect(0, top, width, bottom - top);
    for (const { index, start_s, end_s } of this.blocks) {
      if (end_s < right - SHOWN_S) continue;
      paint.fillStyle = colour("made");
      paint.globalAlpha = index % 2 ? 1 : 0.75;
      paint.fillRect(x(start_s), top, x(end_s) - x(start_s) - 1, bottom - top);
    }
    paint.globalAlpha = 1;
    paint.fillStyle = colour("accent");
    paint.fillRect(x(playhead), bottom + 2, Math.max(0, x(bufferEnd) - x(playhead)), 3);

    paint.fillStyle = colour("quiet");
    paint.font = "11px system-ui, sans-serif";
    for (let second = Math.ceil((right - SHOWN_S) / 5) * 5; second < right; second += 5) {
      if (second < 0) continue;
      paint.fillRect(x(second), bottom + 6, 1, 4);
      paint.textAlign = x(second) < 12 ? "left" : "center";
      paint.fillText(`${second} s`, x(second), bottom + 22);
    }

    const green = colour("shown");
    paint.lineWidth = 2;
    const told = [...this.receipts.values()].filter(({ stage }) => stage === "received" || stage === "applied");
    told.sort((a, b) => (a.second ?? Infinity) - (b.second ?? Infinity));
    told.forEach(({ received_s, second, prompt }, i) => {
      paint.strokeStyle = paint.fillStyle = green;
      paint.beginPath();
      paint.arc(x(received_s), 32, 4, 0, 7);
      paint.stroke();
      if (second === null) return;
      paint.beginPath();
      paint.moveTo(x(received_s) + 5, 32);
      paint.lineTo(x(second), 32);
      paint.lineTo(x(second), top);
      paint.stroke();
      paint.beginPath();
      paint.arc(x(second), 32, 4.5, 0, 7);
      paint.fill();
      paint.textAlign = "left";
      paint.fillStyle = colour("text");
      const room = x(told[i + 1]?.second ?? Infinity) - x(second) - 6;
      paint.fillText(shorten(paint, prompt, Math.min(room, 200)), Math.max(2, x(second) - 4), 20);
    });

    paint.fillStyle = colour("edge");
    paint.fillRect(x(edge) - 1, top - 6, 2, bottom - top + 12);
    paint.fillStyle = colour("text");
    paint.fillRect(x(playhead) - 1, top - 6, 2.5, bottom - top + 12);
    const words = `You are at ${playhead.toFixed(0)} s, the live edge is at ${edge.toFixed(0)} s`;
    if (Math.round(playhead) % 5 === 0) canvas.setAttribute("aria-label", `Timeline. ${words}.`);
  }
}
