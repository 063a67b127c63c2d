// What a reader does with the page: sort, choose, point, copy. Each returns what he then saw.
import { column } from "./probes.mjs";

const FORMULA = '=HYPERLINK("file:///etc/hosts", "a,b")';

// Sorts by the first column of numbers: by mouse, then twice from the keyboard.
async function sort(page, table) {
  const head = page.locator(`#${table} thead th:not([data-kind=text])`).first();
  const at = await head.evaluate((one) => one.cellIndex);
  const look = async () => ({
    aria: await head.getAttribute("aria-sort"),
    n_sorted: await page.locator(`#${table} thead th[aria-sort]`).count(),
    values: await page.evaluate(column, [table, at]),
  });
  const button = head.getByRole("button");
  const before = await look();
  await button.click();
  const clicked = await look();
  await button.focus();
  await page.keyboard.press("Enter");
  const entered = await look();
  await page.keyboard.press("Space");
  return { before, clicked, entered, spaced: await look() };
}

// Leaves out the first variant, and takes it back.
async function choose(page) {
  const boxes = page.locator("#numbers [data-choose] input[type=checkbox]");
  const n_boxes = await boxes.count();
  if (!n_boxes) return { n_boxes };
  const place = await boxes.first().getAttribute("data-place");
  const look = () => page.evaluate((which) => {
    const holds = (one) => (one.dataset.versions ?? "").split(" ").includes(which);
    const all = [...document.querySelectorAll("#numbers tbody tr, .multiples > [data-versions]")];
    const seen = all.filter((one) => one.getClientRects().length);
    return { n_with: seen.filter(holds).length, n_without: seen.filter((one) => !holds(one)).length };
  }, place);
  const before = await look();
  await boxes.first().uncheck();
  const left_out = await look();
  await boxes.first().check();
  return { n_boxes, before, left_out, back: await look() };
}

// Shows every attack, then those of one setting alone.
async function filter(page) {
  const tools = page.locator("[data-tools=figures]");
  const settings = () => page.evaluate(() => {
    const rows = [...document.querySelectorAll("#figures tbody tr")];
    return rows.filter((row) => row.getClientRects().length).map((row) => row.dataset.setting);
  });
  const first = await settings();
  await tools.locator("input[type=checkbox]").check();
  const every = await settings();
  const names = await tools.locator("option").evaluateAll((all) => all.map((one) => one.value));
  await tools.locator("select").selectOption(names.at(-1));
  const chosen = await settings();
  await tools.locator("select").selectOption("");
  return { n_first: first.length, n_every: every.length, n_rows: await page.locator("#figures tbody tr").count(), asked: names.at(-1), chosen: [...new Set(chosen)], n_chosen: chosen.length };
}

// Points at the first mark of each figure, and steps to the next from the keyboard.
async function point(page) {
  const found = [];
  for (const box of await page.locator("main figure svg").all()) {
    if (!(await box.isVisible())) continue;
    const mark = box.locator(".mark").first();
    if (!(await mark.count())) continue;
    const figure = await box.evaluate((one) => one.querySelector("title").textContent);
    await mark.scrollIntoViewIfNeeded();
    // Scrolling is told a frame later, and hides what is said.
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const frame = await mark.boundingBox();
    const spot = { x: frame.x + frame.width / 2, y: frame.y + frame.height / 2 };
    // Another mark may lie over it.
    const note = await page.evaluate(({ x, y }) => document.elementFromPoint(x, y)?.closest(".mark")?.dataset.note ?? null, spot);
    await page.mouse.move(0, 0);
    await page.mouse.move(spot.x, spot.y);
    const tip = page.locator("#tip");
    const said = (await tip.isVisible()) ? await tip.textContent() : null;
    await box.focus();
    await page.keyboard.press("ArrowRight");
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)))));
    const stepped = (await tip.isVisible()) ? await tip.textContent() : null;
    await page.keyboard.press("Escape");
    found.push({ figure, note, said, stepped, gone: !(await tip.isVisible()) });
    if (found.length >= 6) break;
  }
  return found;
}

function parse(text) {
  const rows = [];
  let row = [];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|$)/g)) {
    row.push(quoted === undefined ? { text: plain, is_text: false } : { text: quoted.replaceAll('""', '"'), is_text: true });
    if (end !== ",") {
      if (row.length > 1 || row[0].text) rows.push(row);
      row = [];
    }
  }
  return rows;
}

// Copies a table, in the first cell of which a formula was put, and reads it as a spreadsheet would.
async function copy(page, table) {
  await page.evaluate(([name, text]) => {
    [...document.querySelectorAll(`#${name} > tbody > tr`)].find((row) => !row.hidden).cells[0].textContent = text;
  }, [table, FORMULA]);
  await page.evaluate(() => navigator.clipboard.writeText(""));
  await page.locator(`[data-tools=${table}]`).getByRole("button", { name: "Copy as CSV" }).click();
  let text = "";
  for (let tries = 0; tries < 100 && !text; tries += 1) {
    await page.waitForTimeout(50);
    text = await page.evaluate(() => navigator.clipboard.readText());
  }
  const [heads, ...rows] = parse(text);
  return {
    heads: heads.map((cell) => cell.text),
    n_rows: rows.length,
    ragged: rows.filter((row) => row.length !== heads.length).length,
    numbers: rows.flat().filter((cell) => !cell.is_text && cell.text !== "").length,
    not_numbers: rows.flat().filter((cell) => !cell.is_text && cell.text !== "" && !Number.isFinite(Number(cell.text))).map((cell) => cell.text),
    formulas: [...heads, ...rows.flat()].filter((cell) => cell.is_text && /^\s*[=+\-@|%]/.test(cell.text)).map((cell) => cell.text),
    guarded: [...heads, ...rows.flat()].filter((cell) => cell.is_text && cell.text.startsWith("'")).map((cell) => cell.text),
    controls: (text.replace(/\r\n/g, "").match(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g) ?? []).length,
  };
}

export async function interact(page) {
  const pwned = await page.evaluate(() => window.__pwned ?? null);
  if (!(await page.locator("[data-tools]").count())) return { pwned };
  const tables = await page.locator("table[data-sort]").evaluateAll((all) => all.map((one) => one.id));
  const sorted = {};
  for (const table of tables) sorted[table] = await sort(page, table);
  const filtered = await filter(page);
  const chosen = await choose(page);
  const copied = {};
  for (const table of ["figures", "comparisons"]) copied[table] = await copy(page, table);
  return { pwned, sorted, filtered, chosen, copied, pointed: await point(page) };
}
