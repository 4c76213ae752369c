// Shows values under the pointer and lets the reader choose runs. It reads the page's own tables
// and writes text only; the page is complete without it.
"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  const numbers = (text) => (text || "").split(" ").filter(Boolean).map(Number);

  // A row of a table as text: a line per cell that is neither empty nor hidden.
  function rowText(table, index) {
    const row = table.tBodies[0].rows[index];
    if (!row || row.hidden) return "";
    const heads = table.tHead.rows[0].cells;
    const parts = [];
    for (let k = 0; k < row.cells.length; k++) {
      const value = row.cells[k].textContent.trim();
      if (value && !row.cells[k].hidden) parts.push(heads[k].textContent.trim() + ": " + value);
    }
    return parts.join("\n");
  }

  for (const picture of document.querySelectorAll("svg[data-table]")) {
    const table = document.getElementById(picture.dataset.table);
    const xs = numbers(picture.dataset.x);
    const ys = numbers(picture.dataset.y);
    const [, , width] = numbers(picture.getAttribute("viewBox"));
    if (!table || !xs.length) continue;
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cursor.setAttribute("class", "cursor");
    picture.append(cursor);
    picture.setAttribute("tabindex", "0");
    let place = -1;

    function hide() {
      place = -1;
      tip.hidden = true;
      cursor.setAttribute("d", "");
    }

    function show(index) {
      const text = rowText(table, index);
      if (!text) return;
      place = index;
      const x = xs[index];
      const y = ys[index];
      const ring = `M${x - 8} ${y}a8 8 0 1 0 16 0a8 8 0 1 0 -16 0`;
      cursor.setAttribute("d", ys.length ? ring : `M${x} 4V${picture.dataset.low}`);
      if (tip.textContent !== text) tip.textContent = text;
      tip.hidden = false;
      const box = picture.getBoundingClientRect();
      const scale = box.width / width;
      const left = box.left + x * scale;
      const room = document.documentElement.clientWidth;
      const wide = tip.offsetWidth;
      const beside = left + 14 + wide < room ? left + 14 : left - 14 - wide;
      tip.style.left = `${window.scrollX + Math.max(4, Math.min(beside, room - wide - 4))}px`;
      tip.style.top = `${window.scrollY + box.top + (ys.length ? y * scale + 12 : 8)}px`;
    }

    function nearest(event) {
      const box = picture.getBoundingClientRect();
      const x = ((event.clientX - box.left) * width) / box.width;
      const y = ((event.clientY - box.top) * width) / box.width;
      let best = -1;
      let least = Infinity;
      for (let k = 0; k < xs.length; k++) {
        const row = table.tBodies[0].rows[k];
        if (row && row.hidden) continue;
        const far = ys.length ? Math.hypot(xs[k] - x, ys[k] - y) : Math.abs(xs[k] - x);
        if (far < least) [best, least] = [k, far];
      }
      return best;
    }

    picture.addEventListener("pointermove", (event) => show(nearest(event)));
    picture.addEventListener("pointerdown", (event) => show(nearest(event)));
    picture.addEventListener("pointerleave", hide);
    picture.addEventListener("blur", hide);
    picture.addEventListener("focus", () => show(Math.max(0, place)));
    picture.addEventListener("keydown", (event) => {
      const last = xs.length - 1;
      const to = {
        ArrowRight: Math.min(last, place + 1), ArrowDown: Math.min(last, place + 1),
        ArrowLeft: Math.max(0, place - 1), ArrowUp: Math.max(0, place - 1), Home: 0, End: last,
      }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }

  // The choice of runs: hides every trace of a run that is not chosen, and a method without chosen
  // runs. Means remain those of all runs.
  const boxes = [...document.querySelectorAll("input[data-choose]")];
  function choose() {
    const chosen = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const groups = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.choose));
    for (const element of document.querySelectorAll("[data-run]"))
      setHidden(element, !chosen.has(element.dataset.run));
    for (const element of document.querySelectorAll("[data-group]"))
      setHidden(element, !groups.has(element.dataset.group));
  }
  function setHidden(element, off) {
    if (off) element.setAttribute("hidden", "");
    else element.removeAttribute("hidden");
  }
  for (const box of boxes) box.addEventListener("change", choose);
  for (const button of document.querySelectorAll("button[data-all]"))
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.all === "1";
      choose();
    });

  // A link to a run opens it.
  function openTarget() {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();
});
