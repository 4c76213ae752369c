// A drawing pad of 16x16 pixels for pointer and keyboard.
export const SIDE = 16;

// Draws an image of 256 numbers into a canvas of its own size.
export function paint(canvas, image, cursor = null) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  const data = context.createImageData(SIDE, SIDE);
  image.forEach((value, place) => data.data.set([value, value, value, 255], 4 * place));
  if (cursor !== null) data.data.set([255, 160, 40, 255], 4 * cursor);
  context.putImageData(data, 0, 0);
}

export function thumbnail(image, size) {
  const canvas = document.createElement("canvas");
  paint(canvas, image);
  canvas.style.width = canvas.style.height = `${size}px`;
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

export class Pad {
  // `changed` is called after each stroke, and `say` with a text for screen readers.
  constructor(canvas, name, changed, say) {
    Object.assign(this, { canvas, changed, say, at: 8 * SIDE + 8, focused: false, last: null });
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "drawing pad");
    canvas.setAttribute("aria-label",
      `${name}: 16 by 16 pixels. Arrow keys move, Shift with them draws, Space draws a dot, Delete clears.`);
    this.clear();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => { this.focused = canvas.matches(":focus-visible"); this.show(); });
    canvas.addEventListener("blur", () => { this.focused = false; this.show(); });
  }
  get empty() { return this.image.every((value) => value < 100); }
  clear() { this.set(new Array(SIDE * SIDE).fill(0)); }
  set(image) { this.image = [...image]; this.show(); }
  show() { paint(this.canvas, this.image, this.focused ? this.at : null); }
  dot(x, y) { // a soft pen: a full pixel and half of those around it
    const raise = (column, row, value) => {
      if (column < 0 || row < 0 || column >= SIDE || row >= SIDE) return;
      const place = row * SIDE + column;
      this.image[place] = Math.max(this.image[place], value);
    };
    const [column, row] = [Math.floor(x), Math.floor(y)];
    raise(column, row, 255);
    for (const [a, b] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) raise(column + a, row + b, 110);
  }
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
  }
  begin(event) {
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.place(event);
    this.dot(...this.last);
    this.show();
  }
  move(event) {
    if (!this.last) return;
    const [x, y] = this.place(event);
    const steps = Math.ceil(4 * Math.hypot(x - this.last[0], y - this.last[1])) || 1;
    for (let step = 1; step <= steps; step++) {
      const share = step / steps;
      this.dot(this.last[0] + share * (x - this.last[0]), this.last[1] + share * (y - this.last[1]));
    }
    this.last = [x, y];
    this.show();
  }
  end() {
    if (!this.last) return;
    this.last = null;
    this.changed();
  }
  key(event) {
    let [row, column] = [Math.floor(this.at / SIDE), this.at % SIDE];
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key in moves) {
      row = Math.min(SIDE - 1, Math.max(0, row + moves[event.key][0]));
      column = Math.min(SIDE - 1, Math.max(0, column + moves[event.key][1]));
      this.at = row * SIDE + column;
      if (event.shiftKey) this.dot(column, row);
    } else if (event.key === " ") this.dot(column, row);
    else if (event.key === "Delete" || event.key === "Backspace") { this.clear(); this.say("cleared"); }
    else return;
    event.preventDefault();
    this.focused = true;
    this.show();
    if (event.key !== "Delete" && event.key !== "Backspace")
      this.say(`row ${row + 1}, column ${column + 1}, ${this.image[this.at] > 100 ? "drawn" : "empty"}`);
    if (event.key === " " || event.shiftKey) this.changed();
  }
}
