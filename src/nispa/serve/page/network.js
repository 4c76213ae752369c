// Units and connections on a canvas: a block of units for each group, lines between blocks.
export const TASK_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7f3fbf"];
const CANDIDATE = 1, STABLE = 2, FADE_MS = 2200;
const still = matchMedia("(prefers-reduced-motion: reduce)");
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

export class Network {
  constructor(canvas) {
    this.canvas = canvas;
    this.states = {}; this.lines = {}; this.changes = {}; this.changed = -Infinity;
    this.frame = 0; this.frames = 0;
    new ResizeObserver(() => this.layOut()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }
  form(groups, layers) {
    this.groups = groups; this.layers = layers;
    this.states = {}; this.changes = {}; this.changed = -Infinity;
    this.layOut();
  }
  update({ units, lines, changes }) {
    for (const [name, group] of Object.entries(units ?? {})) this.states[name] = bytes(group.states);
    this.lines = lines ?? this.lines;
    if (changes) { this.changes = changes; this.changed = performance.now(); }
    this.draw();
  }
  // Blocks side by side where there is room, one above the other on a phone.
  layOut() {
    if (!this.groups) return;
    const wide = this.canvas.parentElement.clientWidth - 26;
    this.upright = wide < 560;
    const last = this.groups.length - 1;
    const columns = this.groups.map(({ size }, k) => this.upright ? Math.min(size, size > 64 ? 40 : 35)
      : Math.ceil(Math.sqrt(size) * (k === 0 ? 1 : .7)));
    const rows = this.groups.map((group, k) => Math.ceil(group.size / columns[k]));
    const gaps = last;
    let cell, gap, high;
    if (this.upright) {
      cell = Math.min(9, wide / Math.max(...columns)); gap = 30;
      high = 18 + rows.reduce((sum, row) => sum + row * cell + 16, 0) + gaps * gap;
    } else {
      gap = Math.max(26, wide * .06);
      cell = Math.min(13, (wide - gaps * gap) / columns.reduce((sum, column) => sum + column, 0));
      high = Math.max(...rows) * cell + 30;
    }
    let along = 0;
    const total = this.upright ? 0 : columns.reduce((sum, c) => sum + c * cell, 0) + gaps * gap;
    if (!this.upright) along = (wide - total) / 2;
    this.blocks = {};
    this.groups.forEach((group, k) => {
      const [width, height] = [columns[k] * cell, rows[k] * cell];
      const x = this.upright ? (wide - width) / 2 : along;
      const y = this.upright ? along + 16 : 22 + (high - 22 - height) / 2;
      this.blocks[group.name] = { x, y, columns: columns[k], size: group.size, end: !this.upright && k === last };
      along += this.upright ? height + 16 + gap : width + gap;
    });
    this.cell = cell; this.wide = wide; this.high = high;
    const sharp = devicePixelRatio || 1;
    this.canvas.width = wide * sharp; this.canvas.height = high * sharp;
    this.canvas.style.height = `${high}px`; this.canvas.style.width = `${wide}px`;
    this.draw();
  }
  middle(block, unit) {
    return [block.x + (unit % block.columns + .5) * this.cell,
            block.y + (Math.floor(unit / block.columns) + .5) * this.cell];
  }
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame((now) => this.drawNow(now));
  }
  strokes(pairs, layer) { // one path for all lines of a layer
    const [from, to] = [this.blocks[layer.source], this.blocks[layer.target]];
    this.context.beginPath();
    for (let k = 0; k < pairs.length; k += 2) {
      this.context.moveTo(...this.middle(from, pairs[k]));
      this.context.lineTo(...this.middle(to, pairs[k + 1]));
    }
    this.context.stroke();
  }
  drawNow(now) {
    if (!this.blocks) return;
    this.frames += 1;
    const context = this.context = this.canvas.getContext("2d");
    const sharp = devicePixelRatio || 1;
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, this.wide, this.high);
    const age = (now - this.changed) / FADE_MS;
    const strength = still.matches ? (age < 3 ? 1 : 0) : Math.max(0, 1 - age);
    for (const layer of this.layers) {
      context.lineWidth = .7; context.setLineDash([]); context.strokeStyle = style("--wire");
      if (this.lines[layer.name]) this.strokes(this.lines[layer.name], layer);
      const change = this.changes[layer.name];
      if (!change || !strength) continue;
      context.globalAlpha = .75 * strength; context.lineWidth = 1.2;
      context.strokeStyle = style("--bad"); context.setLineDash([4, 3]);
      this.strokes(change.dropped_lines, layer);
      context.strokeStyle = style("--good"); context.setLineDash([]);
      this.strokes(change.grown_lines, layer);
      context.globalAlpha = 1;
    }
    const names = { plastic: style("--plastic"), candidate: style("--candidate"), ink: style("--soft"), page: style("--box") };
    context.font = "12px system-ui, sans-serif"; context.textBaseline = "bottom";
    for (const [name, block] of Object.entries(this.blocks)) this.units(context, name, block, names);
    if (strength) this.draw();
  }
  units(context, name, block, colours) {
    const states = this.states[name], cell = this.cell, side = Math.max(2, cell - 1.5);
    context.fillStyle = colours.page;
    const rows = Math.ceil(block.size / block.columns);
    context.globalAlpha = .7;
    context.fillRect(block.x, block.y, block.columns * cell, rows * cell);
    context.globalAlpha = 1;
    context.fillStyle = colours.ink;
    context.textAlign = block.end ? "right" : "left";
    context.fillText(title(name), block.end ? block.x + block.columns * cell : block.x, block.y - 2);
    for (let unit = 0; unit < block.size; unit++) {
      const [x, y] = this.middle(block, unit), state = states ? states[unit] : 0;
      if (state >= STABLE) {
        context.fillStyle = TASK_COLOURS[(state - STABLE) % TASK_COLOURS.length];
        context.fillRect(x - side / 2, y - side / 2, side, side);
      } else if (state === CANDIDATE) {
        context.strokeStyle = colours.candidate; context.lineWidth = Math.max(1.2, cell / 5);
        context.beginPath(); context.arc(x, y, side / 2.8, 0, 7); context.stroke();
      } else {
        context.fillStyle = colours.plastic;
        context.beginPath(); context.arc(x, y, Math.max(.8, cell / 7), 0, 7); context.fill();
      }
    }
  }
}

export function title(name) {
  return { input: "image", output: "answers" }[name] ?? name.replace(/^fc|^hidden/, "layer ");
}
