// What is looked at inside the page. Each function is handed to the browser as it stands, and so
// uses nothing from outside itself.

// Whether the document is wider than its window, and by what; what scrolls in a box of its own and
// what is clipped away cannot widen it. Parts that are printed on a broader page are left out where
// `narrow` is set.
export function overflow(narrow) {
  const root = document.documentElement;
  const broad = (element) => {
    for (let at = element; at && narrow; at = at.parentElement) {
      if (!["auto", ""].includes(getComputedStyle(at).page ?? "auto")) return true;
    }
    return false;
  };
  const boxed = (element) => {
    for (let at = element.parentElement; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX !== "visible") return true;
    }
    return false;
  };
  const name = (element) => {
    const id = element.id ? `#${element.id}` : "";
    const kind = element.getAttribute("class") ?? "";
    return `${element.tagName.toLowerCase()}${id}${kind ? `.${kind.trim().replace(/\s+/g, ".")}` : ""}`;
  };
  const wide = [...document.body.querySelectorAll("*")]
    .filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1)
    .filter((one) => getComputedStyle(one).position !== "fixed" && !one.closest("svg svg, svg *"))
    .filter((one) => !boxed(one) && !broad(one));
  // A word that cannot be broken leaves its element without widening it.
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (words.nextNode()) {
    const within = words.currentNode.parentElement;
    range.selectNodeContents(words.currentNode);
    const right = Math.max(0, ...[...range.getClientRects()].map((box) => box.right));
    const counts = right > root.clientWidth + 1 && getComputedStyle(within).position !== "fixed";
    if (counts && !within.closest("svg, #tip") && !boxed(within) && getComputedStyle(within).overflowX === "visible" && !broad(within)) wide.push(within);
  }
  const by = narrow ? 0 : root.scrollWidth - root.clientWidth;
  return by > 0 || wide.length ? [`${by} px`, ...wide.slice(0, 5).map(name)] : [];
}

// Text of inline figures: pairs that lie over each other, text that leaves its figure, the smallest
// letters. The box of a text is as high as its font; only what lies between the top of a capital
// and the base line, about the middle 70 %, is counted.
export function figures() {
  const found = { overlaps: [], outside: [], smallest: null, n_texts: 0, n_figures: 0 };
  for (const svg of document.querySelectorAll("svg:not(.icon)")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width || !frame.height) continue;
    found.n_figures += 1;
    const title = svg.querySelector("title")?.textContent ?? "";
    const boxes = [];
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (!box.width || !text.textContent.trim()) continue;
      if (getComputedStyle(text).visibility !== "visible") continue;
      const matrix = text.getScreenCTM();
      const scale = Math.sqrt(Math.abs(matrix.a * matrix.d - matrix.b * matrix.c));
      const size = scale * Number.parseFloat(getComputedStyle(text).fontSize);
      const turned = Math.abs(matrix.b) > Math.abs(matrix.a);
      const [x, y] = turned ? [0.15 * box.width, 0] : [0, 0.15 * box.height];
      const words = text.textContent.trim();
      boxes.push({ l: box.left + x, r: box.right - x, t: box.top + y, b: box.bottom - y, words });
      if (found.smallest === null || size < found.smallest.px) {
        found.smallest = { px: Math.round(100 * size) / 100, words, title };
      }
      const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top - y, box.bottom - y - frame.bottom);
      if (out > 1) found.outside.push(`${title}: "${words}" by ${out.toFixed(1)} px`);
    }
    found.n_texts += boxes.length;
    boxes.forEach((one, at) => boxes.slice(at + 1).forEach((two) => {
      const across = Math.min(one.r, two.r) - Math.max(one.l, two.l);
      const down = Math.min(one.b, two.b) - Math.max(one.t, two.t);
      if (across > 1 && down > 1) {
        found.overlaps.push(`${title}: "${one.words}" and "${two.words}" by ${across.toFixed(1)} x ${down.toFixed(1)} px`);
      }
    }));
  }
  return found;
}

// What a reader without scripts gets: sections, tables, rows, figures; what lies in a folded
// `details` can be unfolded without a script and counts as there.
export function shown() {
  const folded = (one) => one.closest("details:not([open])") !== null;
  const seen = (one) => one.getClientRects().length > 0;
  const tally = (selector) => {
    const all = [...document.querySelectorAll(selector)].filter((one) => !folded(one));
    return { n: all.length, n_seen: all.filter(seen).length };
  };
  return {
    sections: tally("main > section"),
    tables: tally("main table"),
    rows: tally("main tbody tr"),
    figures: tally("main figure"),
    drawings: [...document.querySelectorAll("main figure")].filter((one) => [...one.querySelectorAll("svg")].some(seen)).length,
    controls: tally("main button, main select, main input[type=checkbox]").n_seen,
  };
}

// The order of a table's column: what is absent comes as null.
export function column([table, at]) {
  return [...document.querySelectorAll(`#${table} > tbody > tr`)].map((row) => {
    const cell = row.cells[at];
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  });
}

// Leaves the first of what is made alike many times: rows, small figures, receipts.
export function shorten([n_rows, n_parts]) {
  const cut = (parts, most) => [...parts].slice(most).forEach((one) => one.remove());
  for (const body of document.querySelectorAll("tbody")) cut(body.rows, n_rows);
  for (const box of document.querySelectorAll(".multiples, .receipts")) cut(box.children, n_parts);
}
