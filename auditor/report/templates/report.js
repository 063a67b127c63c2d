// Sorting, choosing, hovering, copying. Without it everything shows, and these controls do not.
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const names = JSON.parse(document.querySelector("main").dataset.names);

  // --- which rows and small figures show: of chosen variants, settings, and the essential ones
  const left = new Set();
  const filters = new Map();
  const isChosen = (element) =>
    (element.dataset.versions || "").split(" ").every((place) => !left.has(place));
  const show = () => {
    all(".multiples > [data-versions]").forEach((one) => { one.hidden = !isChosen(one); });
    filters.forEach((filter, table) => {
      const rows = all("tbody tr", table);
      rows.forEach((row) => {
        const setting = !filter.setting.value || row.dataset.setting === filter.setting.value;
        const kept = filter.every.checked || !("more" in row.dataset);
        row.hidden = !(setting && kept && isChosen(row));
      });
      const shown = rows.filter((row) => !row.hidden).length;
      filter.count.textContent = `${shown} of ${rows.length} rows`;
    });
  };

  all("[data-choose]").forEach((place) => {
    if (names.length < 3) return;
    const set = make("fieldset", { className: "choose" }, make("legend", { textContent: "Variants" }));
    names.slice(1).forEach((name, at) => {
      const box = make("input", { type: "checkbox", checked: true });
      box.dataset.place = String(at + 1);
      box.addEventListener("change", () => {
        left[box.checked ? "delete" : "add"](box.dataset.place);
        all(`[data-place="${box.dataset.place}"]`).forEach((twin) => { twin.checked = box.checked; });
        show();
      });
      set.append(make("label", {}, box, make("span", { textContent: name })));
    });
    place.append(set);
  });

  // --- copying
  const copied = async (text, button) => {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
    }
    const label = button.textContent;
    button.textContent = done ? "Copied" : "Copying is not allowed here";
    setTimeout(() => { button.textContent = label; }, 1500);
  };
  const button = (label, action) => {
    const element = make("button", { type: "button", className: "push", textContent: label });
    element.addEventListener("click", () => action(element));
    return element;
  };
  // A spreadsheet would run a text that begins like a formula, some of them in wide letters too,
  // and where it takes semicolons for commas one that goes on like a formula after one.
  const quoted = (text) => `"${text.replace(/(^|;)(?=[\s\p{Cf}\p{Cc}]*[=+\-@|%\uFF0B\uFF0D\uFF1D\uFF20])/gu, "$1'").replaceAll('"', '""')}"`;
  const words = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
  const fields = (cell, kind) => {
    if (kind === "text") return [quoted(words(cell))];
    const numbers = kind === "number" ? ["value"] : ["value", "low", "high"];
    return numbers.map((name) => cell.dataset[name] ?? "");
  };
  const csv = (table) => {
    const heads = all("thead th", table);
    const kinds = heads.map((head) => head.dataset.kind);
    const titles = heads.flatMap((head, at) => {
      const title = words(head);
      // What is shown in percent is copied as the share that it is.
      const plain = title.replace(/, (%|points)$/, "");
      return kinds[at] === "estimate" ? [plain, `${plain} low`, `${plain} high`] : [kinds[at] === "text" ? title : plain];
    });
    const rows = all("tbody tr", table).filter((row) => !row.hidden);
    const lines = rows.map((row) => [...row.cells].flatMap((cell, at) => fields(cell, kinds[at])).join(","));
    return [titles.map(quoted).join(","), ...lines, ""].join("\r\n");
  };

  all("[data-tools]").forEach((place) => {
    const table = document.getElementById(place.dataset.tools);
    const found = new Set(all("tbody tr", table).map((row) => row.dataset.setting).filter(Boolean));
    const setting = make("select", {}, make("option", { value: "", textContent: "every setting" }));
    found.forEach((name) => setting.append(make("option", { value: name, textContent: name })));
    const every = make("input", { type: "checkbox" });
    const count = make("span", { className: "count" });
    [setting, every].forEach((control) => control.addEventListener("change", show));
    filters.set(table, { setting, every, count });
    place.className = "tools";
    const label = place.dataset.tools === "figures" ? "every attack" : "secondary too";
    place.append(
      make("label", {}, make("span", { textContent: "Show" }), setting),
      make("label", {}, every, make("span", { textContent: label })),
      count,
      button("Copy as CSV", (pressed) => copied(csv(table), pressed)),
    );
  });
  all("[data-copy]").forEach((place) => {
    const source = document.getElementById(place.dataset.copy);
    place.className = "right";
    place.append(button("Copy", (pressed) => copied(source.textContent, pressed)));
  });

  // --- sorting: numbers by what they are, absent ones last, equal ones as they stood
  const key = (cell, kind) => {
    if (kind === "text") return words(cell);
    return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
  };
  all("table[data-sort]").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, at) => {
      const press = make("button", { type: "button" }, ...head.childNodes);
      head.append(press);
      press.addEventListener("click", () => {
        const isText = head.dataset.kind === "text";
        const first = isText ? "ascending" : "descending";
        const other = isText ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = all("tbody tr", table).map((row) => [key(row.cells[at], head.dataset.kind), row]);
        rows.sort(([one], [two]) => {
          if (isText) return sign * one.localeCompare(two);
          return Number.isNaN(one) - Number.isNaN(two) || sign * (one - two) || 0;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  });

  // --- hovering, and the same from the keyboard: arrow keys step from mark to mark
  const tip = document.getElementById("tip");
  let on = null;
  const hide = () => { tip.hidden = true; on?.classList.remove("on"); on = null; };
  const say = (mark) => {
    hide();
    if (!mark) return;
    // Else the browser shows the same text a second time.
    mark.querySelector?.("title")?.remove();
    if (mark.title) { mark.dataset.note = mark.title; mark.removeAttribute("title"); }
    on = mark;
    on.classList.add("on");
    tip.textContent = mark.dataset.note;
    tip.hidden = false;
    const at = mark.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const x = Math.min(Math.max(8, at.x + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
    const above = at.y - size.height - 8;
    tip.style.left = `${x}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };
  const marked = ".mark, .tokens > span[title], .tokens > span[data-note]";
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest?.(marked);
    if (mark !== on) say(mark);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, { passive: true, capture: true });
  all("figure svg, .tokens").forEach((box) => {
    if (!box.querySelector(marked)) return;
    box.setAttribute("tabindex", "0");
    if (box.matches(".tokens")) {
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Tokens; arrow keys step through their numbers");
    }
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const marks = all(marked, box).filter((mark) => mark.getClientRects().length);
      const next = marks[(marks.indexOf(on) + step + marks.length) % marks.length];
      next.scrollIntoView({ block: "nearest", inline: "nearest" });
      requestAnimationFrame(() => requestAnimationFrame(() => say(next)));
    });
  });

  // --- paper: what is folded is opened, for browsers whose style sheet cannot
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
  show();
})();
