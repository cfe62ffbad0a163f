// What is heard, seen: two level meters and a spectrogram that runs from right to left.

const FLOOR_DB = -60;

export class SoundView {
  constructor(video, canvas, left, right) {
    this.video = video;
    this.canvas = canvas;
    this.bars = [left.firstElementChild, right.firstElementChild];
    this.context = null;
  }

  // Only after a click or a key: browsers let no page make sound before that.
  open() {
    if (this.context) return this.context.resume();
    const context = (this.context = new AudioContext());
    const source = context.createMediaElementSource(this.video);
    const splitter = context.createChannelSplitter(2);
    source.connect(context.destination);
    source.connect(splitter);
    this.analysers = [0, 1].map((channel) => {
      const analyser = context.createAnalyser();
      analyser.fftSize = 2048;
      analyser.smoothingTimeConstant = 0;
      splitter.connect(analyser, channel);
      return analyser;
    });
    this.samples = new Float32Array(2048);
    this.bins = new Float32Array(1024);
    this.canvas.width = 300;
    this.canvas.height = 128;
    this.paint = this.canvas.getContext("2d");
    this.column = this.paint.createImageData(1, this.canvas.height);
    return context.resume();
  }

  draw() {
    if (!this.context || this.context.state !== "running" || this.video.paused) return;
    this.analysers.forEach((analyser, channel) => {
      analyser.getFloatTimeDomainData(this.samples);
      const power = this.samples.reduce((sum, value) => sum + value * value, 0) / this.samples.length;
      const level = Math.max(0, 1 - (10 * Math.log10(power + 1e-9)) / FLOOR_DB);
      this.bars[channel].style.clipPath = `inset(0 ${(1 - level) * 100}% 0 0)`;
    });
    this.analysers[0].getFloatFrequencyData(this.bins);
    const { width, height } = this.canvas;
    const shown = Math.floor((this.bins.length * 8000) / (this.context.sampleRate / 2)); // up to 8 kHz
    for (let row = 0; row < height; row++) {
      const at = Math.min(shown - 1, Math.floor(shown * ((height - 1 - row) / height) ** 1.6));
      const level = Math.min(1, Math.max(0, (this.bins[at] + 100) / 75));
      this.column.data.set([255 * level ** 0.7, 230 * level ** 2, 90 + 120 * level * (1 - level), 255], 4 * row);
    }
    this.paint.drawImage(this.canvas, -1, 0);
    this.paint.putImageData(this.column, width - 1, 0);
  }
}
