// A mask that is painted over an image, by mouse, finger, pen or keyboard.

const PAINT = [0, 200, 255], COLOR = `rgb(${PAINT.join(" ")})`;

export class Mask {
  #down = false;
  #at = [0.5, 0.5];  // of the width and height
  #context;

  /**
   * @param {HTMLElement} box holds the image, the canvas over it, and the ring that shows the brush
   * @param {{size: () => number, erases: () => boolean, say: (text: string) => void}} brush size: percent of the width
   */
  constructor(box, brush) {
    Object.assign(this, {box, brush, canvas: box.querySelector("canvas"), cursor: box.querySelector(".cursor")});
    this.#context = this.canvas.getContext("2d", {willReadFrequently: true});
    box.addEventListener("pointerdown", event => this.#press(event));
    box.addEventListener("pointermove", event => this.#drag(event));
    box.addEventListener("keydown", event => this.#key(event));
    box.addEventListener("focus", () => this.moveTo(this.#at));
  }

  /** Begin an empty mask of an image's size in pixels. */
  reset(width, height) {
    Object.assign(this.canvas, {width, height});
    this.#down = false;
    this.#at = [0.5, 0.5];
  }

  clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Paint where an image is bright. */
  read(image) {
    const {width, height} = this.canvas, c = this.#context;
    this.clear();
    c.drawImage(image, 0, 0, width, height);
    const pixels = c.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const [r, g, b, a] = pixels.data.subarray(i, i + 4);
      pixels.data.set([...PAINT, a * (r + g + b) / (3 * 255) > 127 ? 255 : 0], i);
    }
    c.putImageData(pixels, 0, 0);
  }

  /** The mask as a PNG in a data URL, white where it is painted; null where nothing is. */
  url() {
    const {width, height} = this.canvas, sheet = Object.assign(document.createElement("canvas"), {width, height});
    const c = sheet.getContext("2d"), pixels = this.#context.getImageData(0, 0, width, height);
    let painted = false;
    for (let i = 0; i < pixels.data.length; i += 4) {
      const value = pixels.data[i + 3] > 127 ? 255 : 0;
      painted ||= value > 0;
      pixels.data.set([value, value, value, 255], i);
    }
    c.putImageData(pixels, 0, 0);
    return painted ? sheet.toDataURL("image/png") : null;
  }

  /** Move the brush; while it is down it paints the way. */
  moveTo(place) {
    if (this.#down) this.#stroke(this.#at, place);
    this.#at = place;
    const size = `${this.brush.size()}%`, [left, top] = place.map(share => `${100 * share}%`);
    Object.assign(this.cursor.style, {left, top, width: size, aspectRatio: "1"});
  }

  /** Paint a line, and a dot at its end, as a line of no length is none. */
  #stroke(from, to) {
    const {width, height} = this.canvas, c = this.#context, [x, y] = [to[0] * width, to[1] * height];
    const size = this.brush.size() * width / 100;
    Object.assign(c, {strokeStyle: COLOR, fillStyle: COLOR, lineCap: "round", lineWidth: size,
      globalCompositeOperation: this.brush.erases() ? "destination-out" : "source-over"});
    c.beginPath();
    c.moveTo(from[0] * width, from[1] * height);
    c.lineTo(x, y);
    c.stroke();
    c.beginPath();
    c.arc(x, y, size / 2, 0, 2 * Math.PI);
    c.fill();
    c.globalCompositeOperation = "source-over";
  }

  #placeOf({clientX, clientY}) {
    const box = this.canvas.getBoundingClientRect();
    return [(clientX - box.left) / box.width, (clientY - box.top) / box.height];
  }

  #press(event) {
    if (event.button !== 0) return;
    this.box.setPointerCapture(event.pointerId);
    this.#down = false;
    this.moveTo(this.#placeOf(event));
    this.#stroke(this.#at, this.#at);
  }

  #drag(event) {
    if (!(event.buttons & 1) || !this.box.hasPointerCapture(event.pointerId)) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const place = this.#placeOf(part);
      this.#stroke(this.#at, place);
      this.moveTo(place);
    }
  }

  #key(event) {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    if (event.key === " ") {
      this.#down = !this.#down;
      if (this.#down) this.#stroke(this.#at, this.#at);
      this.brush.say(this.#down ? "The brush is down." : "The brush is up.");
    } else if (moves[event.key]) {
      const step = event.shiftKey ? 0.01 : 0.05;
      this.moveTo(this.#at.map((share, axis) => Math.min(1, Math.max(0, share + step * moves[event.key][axis]))));
    } else {
      return;
    }
    event.preventDefault();
  }
}
